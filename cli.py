"""The `lm2` command: finds a command by name and imports it only when it runs. Knows no ML library and no model."""

import importlib
import os
import sys
from typing import Any

import click

from . import __version__

COMMANDS = {
    "chat": ("runtime.commands.chat", "Chat with a model that keeps a memory."),
    "generate": ("runtime.commands.generate", "Continue a prompt, after any amount of context."),
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
    """Entry point. Exit codes: 0 done, 1 it failed (one line on stderr), 2 the command line is wrong, 130 interrupted."""
    debug = "--debug" in sys.argv[1:] or os.environ.get("LM2_DEBUG", "0") not in ("", "0")
    try:
        code = group.main([a for a in sys.argv[1:] if a != "--debug"], prog_name="lm2", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        click.echo(f"lm2: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    from .models.errors import LM2Error

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LM2Error):
        return text
    return f"unexpected {type(error).__name__}: {text} (run again with --debug and report it)"
