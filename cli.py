"""The `lm2` command: finds a command by name and imports it only when it runs. Knows no ML library and no model."""

import importlib
import io
import os
import sys
from contextlib import suppress
from typing import Any

import click

from . import __version__

COMMANDS = {
    "chat": ("runtime.commands.chat", "Chat with a model that keeps a memory."),
    "generate": ("runtime.commands.generate", "Continue a prompt, after any amount of context."),
    "serve": ("runtime.commands.serve", "Serve a model to OpenAI's clients, with sessions that remember."),
    "pull": ("runtime.commands.pull", "Fetch a model once and give it a memory."),
    "convert": ("runtime.commands.convert", "Turn a Llama, a GGUF or a released LM2 checkpoint into a model folder."),
    "export": ("runtime.commands.export", "Write a model as one ONNX file, with state in and out."),
    "train": ("runtime.commands.train", "Train a memory for a model, or a small model with one."),
    "info": ("runtime.commands.info", "Show what a model folder or a session file holds."),
    "eval": ("runtime.commands.eval", "Measure what a model remembers, with its memory and without."),
    "inspect": ("runtime.commands.inspect", "Picture what a memory holds, how it came there and what an answer read."),
    "parity": ("runtime.commands.parity", "Compare backends on the same tokens, each figure beside its gate."),
    "build-ops": ("runtime.commands.build_ops", "Build the custom op's library for ONNX Runtime, with the C compiler that is there."),
}


class Commands(click.Group):
    """A click group whose commands are modules with a `command` attribute."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=False)
@click.version_option(__version__, prog_name="lm2")
@click.option("--debug", is_flag=True, help="Show Python tracebacks on errors (anywhere on the line, or LM2_DEBUG=1).")
def group(debug: bool) -> None:
    """LM2: a Llama with a memory that stays the same size for any length of text.

    Start with:  lm2 chat
    """


def main() -> Any:
    """Entry point. Exit codes: 0 done, 1 it failed (one line on stderr), 2 the command line is wrong, 130 interrupted, 143 or 129 ended by
    SIGTERM or SIGHUP in mid-answer."""
    debug = "--debug" in sys.argv[1:] or os.environ.get("LM2_DEBUG", "0") not in ("", "0")
    _streams()
    try:
        if sys.stdout is None:
            _complain("stdout is closed: send it to a file, or to /dev/null")
            sys.exit(1)
        code = group.main(
            [a for a in sys.argv[1:] if a != "--debug"], prog_name="lm2", standalone_mode=False, color=False if _without_color() else None
        )
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _complain("interrupted", "")
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("interrupted", "")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        _complain(_one_line(error))
        sys.exit(1)
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            _drop_output()


def _streams() -> None:
    """Text that an encoding does not have, such as a path of other bytes, is escaped, not an error; numbers of closed streams are taken."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if fd == 0 else os.O_WRONLY)  # else the next file opened gets the number of a stream
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        old = sys.stdout
        if os.name == "posix" and old is sys.__stdout__ and old.fileno() == 1:
            raw = io.BufferedWriter(_Stdout(1, "wb", closefd=False))
            sys.stdout = io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=old.line_buffering, write_through=old.write_through)
        if sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")


class _Stdout(io.FileIO):
    """Standard output, whose errors say that they are its."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "stdout"
            raise


def _without_color() -> bool:
    from .runtime.commands.plain import plain

    return plain()


def _complain(text: str, prefix: str = "lm2: ") -> None:
    with suppress(OSError):  # a full or closed stderr: there is no other place to say so
        click.echo(f"{prefix}{text}", err=True, color=False if _without_color() else None)


def _drop_output() -> None:
    """What stdout did not take is not tried again when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    from .models.errors import LM2Error
    from .models.home import home
    from .models.oserrors import described, shown

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and not isinstance(error, LM2Error):
        text = described(error)
        if error.filename == "stdout":
            _drop_output()
            text = f"cannot write to {text}"
    at = error.filename if isinstance(error, OSError) else None
    ours = f"{home()}{os.sep}" in text or (isinstance(at, str) and home().is_relative_to(at))
    if isinstance(error, OSError) and "LM2_HOME" not in text and ours:
        text += " (LM2_HOME says where it lies)"
    elif not isinstance(error, (OSError, LM2Error, click.ClickException)):
        text = f"unexpected {type(error).__name__}: {text} (run again with --debug and report it)"
    return " ".join(shown(text).split())
