"""What a memory holds, as lines for people: of the running chat, and of a session file with the tokenizer of its model. Knows no backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common import visible

if TYPE_CHECKING:
    from ..session.held import Held, Words
    from ..statefile.record import Record

SHOWN = 12
FAINT = 0.005
TITLE = "held most strongly, share of all that is held (/forget N takes turn N out):"


def held_lines(held: Sequence["Held"], width: int, shown: int = SHOWN) -> list[str]:
    """`  3   41%  My sister lives in Oslo. (in the window)`: a line a turn, each cut to `width` columns; what is hardly held and not in the window is counted."""
    loud = [h for h in held if h.share >= FAINT or h.window][:shown]
    lines = [_line(h, width) for h in loud]
    if left := len(held) - len(loud):
        lines.append(f"{'':>11}  and {left} more turn{'' if left == 1 else 's'}, held less")
    return lines


def _line(h: "Held", width: int) -> str:
    text = visible(h.text)
    if h.number < 0:
        text = f"(written before this was noted, {h.rows} rows) {text}"
    elif h.number == 0:
        text = f"(what every window begins with) {text}"
    share = "<1%" if 0 < h.share < FAINT else f"{h.share:.0%}" if h.share else "-"
    text = text.rstrip()
    after = " (in the window)" if h.window else ""
    return f"{h.number if h.number > 0 else '-':>5} {share:>5}  {cut(text, width - 13 - len(after))}{after}"


def cut(text: str, width: int) -> str:
    """A text in at most `width` columns of a terminal, an ellipsis where it was cut."""
    from rich.cells import cell_len, set_cell_size

    width = max(8, width)
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def held_in_file(path: Path, record: "Record", model: str | None) -> list["Held"]:
    """What a session file holds, turn by turn: of the memory as it stood at the window's start, and of the window's tokens.

    model: whose tokenizer tells the words; None looks for the session's own by its name. Raises TokenizerError for one that cannot be read, and
    SessionTokenizerError for a given one that the session was not made with.
    """
    import numpy as np

    from ..session.held import held_turns
    from ..session.ledger import Ledger
    from ..statefile.keeping import check_contents
    from ..statefile.notes import spans_from

    now, ledgers = record.now, check_contents(path, record)
    ledger = None
    if len(now.bank):
        ledger = Ledger.unknown(now.bank[:, 0], float(np.finfo(np.float32).eps)) if ledgers is None else ledgers[id(now.bank)]
    return held_turns(ledger, spans_from(now.notes), now.tokens, _words(path, record, model))


def _words(path: Path, record: "Record", model: str | None) -> "Words":
    from ...models.checkpoints import catalog
    from ...models.errors import ModelFileError, TokenizerError
    from ...models.home import shipped_model
    from ...models.layout import TOKENIZER
    from ...models.text.dialogue import Dialogue
    from ...models.text.template import ChatTemplate
    from ...models.text.tokenizer import Tokenizer
    from ..session.held import frames_of, no_words, wording
    from ..statefile.record import SessionTokenizerError

    name = model or record.meta.model
    folder: Path | None
    if catalog.is_name(name):
        folder = shipped_model(name) or catalog.resolve(name)
    else:
        folder = Path(name) if model else None
    if folder is None or (model is None and not (folder / TOKENIZER).is_file()):
        if model:
            raise ModelFileError(f"model {model} is not here yet: lm2 pull {model}")
        return no_words
    try:
        tokenizer = Tokenizer.load(folder)
    except TokenizerError:
        if model:
            raise
        return no_words
    if tokenizer.sha256 != record.meta.tokenizer:
        if model:
            raise SessionTokenizerError(
                f"{path} was saved with tokenizer {record.meta.tokenizer[:12]}, {model} has {tokenizer.sha256[:12]}: give the model it was saved with"
            )
        return no_words
    template = ChatTemplate.load(folder, tokenizer)
    return wording(tokenizer, frames_of(tokenizer, Dialogue(template)))
