"""The chat in a terminal: prompt, history, status line, errors that do not end the conversation."""

import contextlib

import click

from ...models.errors import LM2Error
from .common import visible
from .plain import plain
from .slash import run
from .talk import Talk

BLOCK = '"""'


def converse(talk: Talk) -> int:
    """Ask and answer until /exit or Ctrl-D. Returns the exit code."""
    with contextlib.suppress(ImportError):
        if not plain():  # it moves the cursor and switches modes with escape codes
            import readline  # noqa: F401  (line editing and history for input())
    _greet(talk)
    while True:
        try:
            text = _ask()
        except UnicodeDecodeError:
            click.secho("lm2: what was typed is not valid UTF-8: check the terminal's encoding", fg="red", err=True)
            continue
        except EOFError:
            click.echo()
            return 0
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D or /exit leaves)")
            continue
        if not text.strip():
            continue
        talk.rest()
        try:
            if text.startswith("/"):
                done = run(talk, text)
            else:
                done = "answered" if talk.answer(text) else "stopped"
            if done == "exit":
                return 0
            if done:
                stopped = "stopped (/undo takes the turn back) · " if done == "stopped" else ""
                click.secho(f"{stopped}{talk.status()}", dim=True)
                talk.ahead()
        except (LM2Error, click.ClickException) as error:
            click.secho(f"lm2: {' '.join(str(error).split())}", fg="red", err=True)
        except KeyboardInterrupt:
            click.secho("\ninterrupted; the session is as it was", dim=True)


def _ask() -> str:
    """One message: a line, or several between triple quotes."""
    text = input(">>> ")
    if not text.startswith(BLOCK):
        return text
    lines = [text[len(BLOCK) :]]
    while not lines[-1].endswith(BLOCK) or (len(lines) == 1 and lines[0] == ""):
        lines.append(input("... "))
    lines[-1] = lines[-1][: -len(BLOCK)]
    return "\n".join(lines).strip("\n")


def _greet(talk: Talk) -> None:
    session = talk.session
    about, memory = session.model.backend.describe(), session.model.config.memory
    trained = "" if memory.trained else ", untrained"
    held = f" · memory {memory.cell}, {memory.slots} rows in {len(memory.layers)} layers{trained}" if session.model.remembers else ""
    where = f"{session.model.name} on {about.backend} ({about.device}, {about.dtype})"
    click.secho(f"{where} · window {session.feeder.size}{held} · seed {session.seed}", dim=True)
    if session.transcript:
        turns = len(session.transcript)
        click.secho(f"going on with {talk.file} ({turns} messages, {session.at.seen} tokens seen); the last of them:", dim=True)
        for message in session.transcript[-2:]:
            text = visible(message["content"])
            click.secho(f"{'>>> ' if message['role'] == 'user' else ''}{text if len(text) < 600 else text[:600] + ' ...'}", dim=True)
    elif talk.file is not None:
        click.secho(f"new session in {talk.file}, saved after every turn", dim=True)
    click.secho("/help lists commands; Ctrl-C stops an answer; Ctrl-D leaves", dim=True)
