"""The chat's slash commands. Each is one small function of the talk and its argument."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...models.errors import LM2Error, PromptError
from ...models.oserrors import described
from .common import megabytes, soft_interrupt
from .talk import Talk

if TYPE_CHECKING:
    from ..session.session import Session


def is_command(line: str) -> bool:
    """Whether a line of a pipe is one of the commands (any other line, also one that begins with a slash, is a message)."""
    return line.split(" ", 1)[0] in COMMANDS


def run(talk: Talk, line: str) -> str | None:
    """Run `/name argument`. Returns "exit" when the chat is over, "answered" or "stopped" after an answer, else None.

    Raises PromptError for an unknown command, LM2Error for a failed one.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise PromptError(f"there is no command {name}: /help lists them")
    try:
        return COMMANDS[name][0](talk, argument.strip())
    except OSError as error:
        if isinstance(error, LM2Error) or error.filename in (None, "stdout"):
            raise
        raise PromptError(described(error)) from None  # a path that the system refuses does not end the chat


def _say(talk: Talk, text: str) -> None:
    click.echo(text, err=not talk.terminal)


def _help(talk: Talk, argument: str) -> None:
    width = max(len(usage) for _, usage, _ in COMMANDS.values() if usage)
    _say(talk, "\n".join(f"{usage:<{width}}  {text}" for _, usage, text in COMMANDS.values() if usage))
    _say(talk, '""" begins and ends a message of several lines; Ctrl-C stops an answer; Ctrl-D leaves.')


def _save(talk: Talk, argument: str) -> None:
    if not argument and talk.file is None:
        raise PromptError("/save needs a file: /save chat.lm2s")
    path = _path(argument) if argument else talk.file
    assert path is not None
    if path != talk.file:
        _need_new(path)

    def save(file: Path) -> "Session":
        talk.session.save(file)
        return talk.session

    talk.go_on_in(path, save)
    _say(talk, f"saved to {path} ({megabytes(path.stat().st_size)}); later turns are saved there too")


def _load(talk: Talk, argument: str) -> None:
    from ..session.session import Session

    if not argument:
        raise PromptError("/load needs a file: /load chat.lm2s")
    path, now = _path(argument), talk.session
    if not path.exists():
        raise PromptError(f"{path} does not exist: check the path")
    talk.go_on_in(path, lambda file: Session.restore(now.model, file, now.notify))
    session = talk.session
    held = f", {session.at.written} tokens in the memory" if session.model.remembers else ""
    _say(talk, f"going on with {path}: {len(session.transcript)} messages{held}")


def _undo(talk: Talk, argument: str) -> None:
    talk.session.undo()
    talk.autosave()
    _say(talk, f"took back the last turn · {talk.status()}")


def _again(talk: Talk, argument: str) -> str:
    return "answered" if talk.again() else "stopped"


def _reset(talk: Talk, argument: str) -> None:
    talk.session.reset()
    talk.autosave()
    _say(talk, "everything is forgotten")


def _fork(talk: Talk, argument: str) -> None:
    if not argument:
        raise PromptError("/fork needs a file for the copy: /fork other.lm2s")
    path, old = _path(argument), talk.file
    _need_new(path)

    def fork(file: Path) -> "Session":
        copy = talk.session.fork()
        copy.save(file)
        return copy

    talk.go_on_in(path, fork)
    _say(talk, f"going on in {path}" + (f"; {old} stays as it is" if old else ""))


def _read(talk: Talk, argument: str) -> None:
    from .reading import read_file

    if not argument:
        raise PromptError("/read needs a file: /read notes.txt")
    path = _path(argument)
    with soft_interrupt() as interrupted:
        tokens, whole = read_file(talk.session, path, True, interrupted, show=talk.terminal)
        talk.autosave()
    _say(talk, f"read {tokens} tokens of {path}{'' if whole else ', then stopped'} · {talk.status()}")


def _memory(talk: Talk, argument: str) -> None:
    import numpy as np

    from .memory import SHOWN, TITLE, held_lines

    session, memory = talk.session, talk.session.model.config.memory
    shown = _count(argument, "/memory") if argument else SHOWN
    if session.model.remembers:
        state = session.memory()
        bank = session.model.backend.to_host(state)  # (l, 1, n, d)
        _say(
            talk,
            f"cell {memory.cell}, {state.written} tokens written, {megabytes(bank.nbytes)}{'' if memory.trained else ', weights not trained'}",
        )
        names = [f"layer {i}" for i in memory.layers] if memory.cell == "gated" else ["all layers"]
        names += ["topics"] if memory.topics else []
        for name, rows in zip(names, bank[:, 0], strict=True):
            size = np.sqrt(np.mean(rows**2, axis=1))  # (n,)
            _say(talk, f"{name:>10}: {int((size > 0).sum())} of {len(size)} rows not zero, RMS mean {size.mean():.3f} max {size.max():.3f}")
    else:
        _say(talk, "no memory: what leaves the window is forgotten")
    if memory.cell == "gated" and (held := session.held()):
        _say(talk, "\n".join([TITLE, *held_lines(held, _width(talk), shown)]))


def _forget(talk: Talk, argument: str) -> None:
    number = _count(argument, "/forget")
    gone = talk.session.forget(number)
    talk.autosave()
    parts = [f"{gone.rows} rows of the memory"] if talk.session.model.remembers else []
    parts += [f"{gone.tokens} tokens of the window", f"{gone.messages} messages"]
    _say(talk, f"turn {number} is forgotten: {', '.join(parts)}; turns that can be undone: {gone.undo}")


def _count(argument: str, name: str) -> int:
    """A number from 1 on, given to command `name`. Raises PromptError."""
    if not (argument.isascii() and argument.isdecimal() and 0 < len(argument) < 10 and int(argument)):
        had = f", not {argument[:20]!r}" if argument else ""
        raise PromptError(f"{name} needs the number of a turn{had}: {name} 3 (/memory shows them)" if name == "/forget" else f"{name} takes how many turns to show{had}: {name} 40")
    return int(argument)


def _width(talk: Talk) -> int:
    """Columns of the terminal; in a pipe as many as tables have there."""
    import shutil

    return shutil.get_terminal_size().columns if talk.terminal else 160


def _stats(talk: Talk, argument: str) -> None:
    session = talk.session
    about = session.model.backend.describe(session.feeder.size)
    versions = ", ".join(f"{k} {v}" for k, v in about.versions.items())
    _say(talk, f"{session.model.name} on {about.backend} ({about.device}, {about.dtype}, quantization {about.quantization}; {versions})")
    reply = session.reply
    if reply is not None and reply.tokens:
        _say(
            talk,
            f"last answer: {reply.prompt_tokens} tokens in at {reply.prompt_tokens / max(reply.prefill_s, 1e-9):.1f}/s, {len(reply.tokens)} out at {len(reply.tokens) / max(reply.decode_s, 1e-9):.1f}/s, ended by {reply.finish}",
        )
    at, remembers = session.at, session.model.remembers
    written = f"{at.written} in the memory" if remembers else "no memory"
    _say(
        talk,
        f"{at.seen} tokens seen, {written}, window {at.filled}/{session.feeder.size} ({at.carried} carried over), seed {session.seed}, {at.draws} draws",
    )
    sizes = f"memory {megabytes(about.state_bytes)}, window {megabytes(about.window_bytes)}"
    _say(talk, f"{sizes}; turns that can be undone: {len(session.snapshots)}; file {talk.file or 'none (/save FILE)'}")


def _exit(talk: Talk, argument: str) -> str:
    return "exit"


def _path(argument: str) -> Path:
    if "\0" in argument:
        raise PromptError("the name of a file has a NUL byte: give another name")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise PromptError(f"{argument}: there is no such user; give the whole path") from None


def _need_new(path: Path) -> None:
    """Nothing that is there already is written over."""
    if path.exists():
        raise PromptError(f"{path} exists already: choose another name, or remove it first")


Command = Callable[[Talk, str], str | None]
COMMANDS: dict[str, tuple[Command, str, str]] = {
    "/help": (_help, "/help", "this list"),
    "/save": (_save, "/save [FILE]", "save the session, and from then on after every turn"),
    "/load": (_load, "/load FILE", "go on with a saved session"),
    "/undo": (_undo, "/undo", "take back the last turn (up to 16, across windows)"),
    "/regen": (_again, "/regen", "answer the last message again"),
    "/reset": (_reset, "/reset", "forget everything"),
    "/fork": (_fork, "/fork FILE", "go on in a copy; the session so far stays in its own file"),
    "/read": (_read, "/read FILE", "read a text of any length"),
    "/memory": (_memory, "/memory [COUNT]", "what the memory holds: layer by layer, and turn by turn in words"),
    "/forget": (_forget, "/forget N", "take turn N out, of the memory, the window and the file"),
    "/stats": (_stats, "/stats", "speed, counts and sizes"),
    "/exit": (_exit, "/exit", "leave"),
    "/bye": (_exit, "", ""),
    "/quit": (_exit, "", ""),
}
