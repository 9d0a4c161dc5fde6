"""`lm2 chat`: a conversation in the terminal, or one turn a line through a pipe. Knows the terminal; the conversation is session.py's."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from ...models.errors import LM2Error, PromptError
from .common import adjusted, check_settings, model_options, need_file, note, open_model, sampling_options, stdin_bytes, window_options
from .talk import Talk


@click.command("chat", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False)
@click.option(
    "--session",
    "session_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Keep the conversation in this file; goes on where it stopped.",
)
@click.option("--new", is_flag=True, help="Start fresh even if the session file exists (it is replaced at the first save).")
@click.option("--system", default=None, help="System prompt.")
@window_options
@sampling_options
@model_options
def command(
    model: str | None, session_file: Path | None, new: bool, system: str | None, window: int | None, no_memory: bool, verbose: bool, max_tokens: int, seed: int | None,
    stop: tuple[str, ...], backend: str, device: str, dtype: str, threads: int, **sampling: Any,
) -> int:  # fmt: skip
    """Chat with MODEL, a model folder or a name; without it, with smollm2, pulling it once (with lm2-tiny where there is no network).

    In a terminal: type, or /help. Ctrl-C stops an answer, Ctrl-D leaves. In a pipe: one turn a line in, one answer a turn out.
    """
    from ..session.session import Session
    from ..statefile.lock import SessionLock

    terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    check_settings(stop, **sampling)
    lock = None
    if session_file is not None:
        need_file(session_file)
        lock = SessionLock(session_file).acquire()
    talk = None
    try:
        loaded = open_model(model, backend, device, dtype, threads, not no_memory)

        def notice(line: str) -> None:
            if verbose:
                note(line)

        if session_file is not None and session_file.exists() and not new:
            session = Session.restore(loaded, session_file, notice)
            session.sampling = adjusted(session.sampling, **sampling)
            if seed is not None:
                session.seed = seed
            if window is not None and window != session.feeder.size:
                raise PromptError(
                    f"{session_file} has a window of {session.feeder.size} tokens, --window says {window}: leave --window out, or start fresh with --new"
                )
            if system is not None and system != session.system:
                raise PromptError(
                    f"{session_file} has another system prompt: leave --system out to go on with it, or start fresh with --new"
                )
        else:
            session = Session(loaded, system, adjusted(loaded.sampling, **sampling), seed, notify=notice, window=window)
        session.head()  # refuses a system prompt, the template's own too, that leaves no room
        talk = Talk(session, max_tokens, stop, terminal)
        talk.file, talk.lock = session_file, lock
        if terminal:
            from .terminal import converse

            return converse(talk)
        if session.sampling.temperature > 0:
            click.echo(f"seed {session.seed}", err=True)
        return _pipe(talk)
    finally:
        if talk is not None:
            talk.close()
        elif lock is not None:
            lock.release()


def _pipe(talk: Talk) -> int:
    """One turn a line. A line that cannot be used is one line on stderr; the rest is still answered, and the exit code is 1."""
    from ..session.reading import MESSAGE_BYTES_MAX, check_message
    from .slash import is_command, run

    failed, number = 0, 0
    for number, raw, size in _lines(stdin_bytes(), MESSAGE_BYTES_MAX):
        try:
            if raw is None:
                raise PromptError(
                    f"line {number} has {size} bytes, more than the {MESSAGE_BYTES_MAX} of one message: read long texts with /read FILE"
                )
            line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if is_command(line):
                done = run(talk, line)
                if done == "exit":
                    break
                if done == "stopped":
                    raise click.Abort
            elif not talk.answer(check_message(line, f"line {number}")):
                raise click.Abort
        except LM2Error as error:
            click.echo(f"lm2: {' '.join(str(error).split())}", err=True)
            failed = 1
    if number == 0:
        raise PromptError("nothing on stdin: give one message a line")
    return failed


def _lines(source: BinaryIO, limit: int) -> Iterator[tuple[int, bytes | None, int]]:
    """Number, bytes and size (without the newline) of each line; a line over `limit` bytes is skipped without being held (bytes None).

    A byte-order mark before the first is no part of it. Raises PromptError where it is that of another encoding.
    """
    from ...models.encoding import MARK
    from ..session.reading import unmarked

    number = 0
    while raw := source.readline(limit + 1 + (0 if number else len(MARK))):
        if not number and not (raw := unmarked(raw, "stdin")):
            break  # nothing but a byte-order mark
        number, size, part = number + 1, len(raw), raw
        while size > limit and not part.endswith(b"\n") and (part := source.readline(1 << 16)):
            size += len(part)
        size -= part.endswith(b"\n")
        yield number, raw if size <= limit else None, size
