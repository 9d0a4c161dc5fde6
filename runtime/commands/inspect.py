"""`lm2 inspect`: a picture of what a memory holds, how it came there, and what an answer read."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import model_options, need_file, note, open_model

if TYPE_CHECKING:
    from ..inspection.look import Look

DISTANCE, SEED, ANSWER_TOKENS = 3, 0, 16


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="FILE.html (needs nothing else) or FILE.png (needs matplotlib).",
)
@click.option("--ask", default=None, metavar="QUESTION", help="Ask this after reading; what the answer read is shown.")
@click.option(
    "--text", type=click.Path(path_type=Path, dir_okay=False), default=None, help='A text to read, or a .json list of {"role", "content"}.'
)
@click.option(
    "--kind", type=click.Choice(["story", "chat"]), default="story", show_default=True, help="Without --text: the built-in conversation."
)
@click.option(
    "--distance", type=click.IntRange(1), default=DISTANCE, show_default=True, help="Built-in: chunks between the fact and the question."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=SEED, show_default=True, help="Built-in: decides the conversation.")
@click.option("--system", default=None, help="System prompt.")
@click.option("--chunk", type=click.IntRange(1), default=None, metavar="T", help="Tokens of a chunk of text [the model's].")
@click.option("--answer-tokens", type=click.IntRange(1), default=ANSWER_TOKENS, show_default=True, help="Longest answer.")
@click.option(
    "--model", "session_model", default=None, metavar="MODEL", help="For a session with --ask: its model [by the name in the file]."
)
@model_options
def command(
    target: str, out: Path, ask: str | None, text: Path | None, kind: str, distance: int, seed: int, system: str | None, chunk: int | None,
    answer_tokens: int, session_model: str | None, backend: str, device: str, dtype: str, threads: int,
) -> None:  # fmt: skip
    """Show what the memory of TARGET holds: a model (folder or name) that reads a conversation, or a session file (.lm2s).

    For a model: write gate, forget gate and size of every row, layer by layer and chunk by chunk, which rows the answer read, and the text
    that is in them. For a session: the size of its rows; with --ask also what the answer read.
    """
    if out.suffix not in (".html", ".png"):
        raise click.UsageError(f"--out {out} must end in .html or .png")
    need_file(out)
    from ...models.checkpoints.catalog import is_name

    path = Path(target)
    look = (
        _session(path, ask, session_model, answer_tokens, (device, dtype, threads), backend)
        if not is_name(target) and (path.is_file() or (path.suffix == ".lm2s" and not path.exists()))
        else _model(target, ask, text, kind, distance, seed, system, chunk, answer_tokens, (device, dtype, threads), backend)
    )
    if out.suffix == ".html":
        from ...models.atomic import write_file
        from ..inspection.page import page

        content = page(look).encode("utf-8", "replace")
        write_file(out, lambda f: f.write(content))
    else:
        from ..inspection.picture import picture

        picture(look, out)
    if look.answered is not None:
        from .common import visible

        for name, words in (("question", look.answered.question), ("answer", look.answered.answer), ("without", look.answered.without)):
            click.echo(f"{name:<9} {visible(' '.join(words.split()))}")
    note(f"written: {out}")


def _model(
    name: str, ask: str | None, text: Path | None, kind: str, distance: int, seed: int, system: str | None, chunk: int | None,
    answer_tokens: int, how: tuple[str, str, int], backend: str,
) -> "Look":  # fmt: skip
    from ..evaluation.render import Renderer
    from ..inspection.look import Looker
    from ..inspection.subject import built_in, look_at_model, read_turns

    loaded = open_model(name, "torch" if backend == "auto" else backend, *how)
    Looker(loaded)  # refuses another backend or cell before anything is read
    renderer = Renderer(loaded, system, chunk, answer_tokens)
    if text is not None:
        return look_at_model(loaded, renderer, read_turns(text, renderer), ask or "", answer_tokens, [f"it read {text.name}"])
    conversation = built_in(renderer, kind, distance, seed)
    ago = "1 chunk" if distance == 1 else f"{distance} chunks"
    notes = [f"built-in conversation: {kind}, seed {seed}; the fact was told {ago} ago; the right answer is: {conversation.answer}"]
    if ask:
        notes = [f"built-in conversation: {kind}, seed {seed}"]
    return look_at_model(loaded, renderer, list(conversation.chunks), ask or conversation.question, answer_tokens, notes)


def _session(path: Path, ask: str | None, model: str | None, answer_tokens: int, how: tuple[str, str, int], backend: str) -> "Look":
    from ..inspection.subject import look_at_session, look_into_session

    look, record = look_at_session(path)
    if ask is None:
        return look
    loaded = open_model(model or record.meta.model, "torch" if backend == "auto" else backend, *how)
    return look_into_session(loaded, path, ask, answer_tokens)
