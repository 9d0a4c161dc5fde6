"""What is looked at: a model reading a conversation or a text, or a saved session. Builds a Look; draws nothing.

A session file keeps banks, not gates and not which text is in which row: without a question only the size of its rows is shown, at the turn
ends it still holds and now.
"""

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.encoding import EncodingError, read_text
from ...models.errors import PromptError
from ...models.tasks.babilong import pieces, sentences
from ...models.tasks.recall import Conversation, Turn
from ..evaluation.render import Renderer
from ..evaluation.sources import recall_cells
from ..statefile.file import Moment, Record, read_session
from .history import rms
from .look import Look, Looker

if TYPE_CHECKING:
    from ..loading import Model

TEXT_BYTES_MAX = 16 << 20
SAY_NOTHING = "Ok."
EMPTY = "the first window has not been left yet: the file's bank is empty, and --ask runs the window again, which fills it"


def built_in(renderer: Renderer, kind: str, distance: int, seed: int) -> Conversation:
    """The first conversation of the recall task's validation part for a seed."""
    (cell,) = recall_cells((kind,), [distance], "validation", seed, renderer)
    conversation: Conversation = next(iter(islice(cell.samples(), 1)))
    return conversation


def read_turns(path: Path, renderer: Renderer) -> list[tuple[Turn, ...]]:
    """A text file as messages of whole sentences, each a chunk; a .json file as a list of {"role", "content"}, cut into chunks where they do not
    fit. Raises PromptError naming the file."""
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise PromptError(f"{path} has {path.stat().st_size} bytes, more than the {TEXT_BYTES_MAX} allowed: give a part of it")
        text = read_text(path)
    except EncodingError as error:
        raise PromptError(f"{path} {error}: save it as UTF-8") from None
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from None
    if path.suffix == ".json":
        return [_messages(path, text)]
    if not text.strip():
        raise PromptError(f"{path} is empty: there is nothing to read")
    parts, _ = pieces(sentences(text), renderer.count, renderer.size - renderer.around())
    return [(Turn("user", part), Turn("assistant", SAY_NOTHING)) for part in parts]


def _messages(path: Path, text: str) -> tuple[Turn, ...]:
    """A list of messages with role and content, the roles as a chat has them."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(found, list) or not found:
        raise PromptError(f'{path} must be a list of messages such as {{"role": "user", "content": "Hello"}}')
    for i, m in enumerate(found):
        if not isinstance(m, dict) or m.get("role") not in ("user", "assistant") or not isinstance(m.get("content"), str):
            raise PromptError(f"{path}: message {i} must have a role (user or assistant) and a content (text)")
    return tuple(Turn(m["role"], m["content"]) for m in found)


def look_at_model(
    model: "Model", renderer: Renderer, chunks: list[tuple[Turn, ...]], question: str, longest: int, notes: list[str]
) -> Look:
    """Read chunks of turns, then ask. Raises BackendError or ModelFileError where gates cannot be looked at."""
    looker = Looker(model)
    ids = [part for turns in chunks for part in renderer.chunks(turns)]
    history, bank = looker.read(ids)
    answered = looker.ask(question, renderer.question(question), bank, longest) if question else None
    times = ["before the first chunk", *(f"after chunk {i + 1}" for i in range(len(ids)))]
    tokens = f"{sum(map(len, ids))} tokens in {len(ids)} chunks of at most {renderer.size}"
    return Look(
        f"What {model.name} remembers", [*notes, tokens], history, [looker.pieces(part) for part in ids], answered, history.norms(),
        looker.layers, times, True,
    )  # fmt: skip


def look_at_session(path: Path) -> tuple[Look, Record]:
    """A session file without its model. Raises a SessionError, or PromptError for a session without a memory."""
    from ..statefile.keeping import check_contents

    record = read_session(path, None)
    check_contents(path, record)
    if not len(record.now.bank):
        raise PromptError(f"{path} was saved without a memory: there is nothing to look at")
    moments: list[Moment] = []
    for moment in (*record.snapshots, record.now):
        if not moments or moment.bank is not moments[-1].bank:
            moments.append(moment)
    norms = np.stack([rms(moment.bank[:, 0]) for moment in moments], axis=-1)  # (l, n, moments)
    notes = [
        f"{path.name}: {record.now.notes['turns']} messages, {record.meta.tokens_seen} tokens; {in_memory(record, record.now)} when the window "
        f"began; {len(record.now.tokens)} tokens in the window ({record.now.carried} carried over), folds: {len(record.now.folds)}",
        f"saved {record.meta.updated} on {record.meta.backend}; the file keeps the memory, not the gates that made it nor the text of its rows",
    ]
    if not record.now.written:
        notes.append(EMPTY)
    times = [in_memory(record, moment) for moment in moments]
    banks = tuple(range(norms.shape[0]))
    return Look(f"A conversation with {record.meta.model}", notes, None, [], None, norms, banks, times, False, "bank"), record


def in_memory(record: Record, moment: Moment) -> str:
    """How much went into a moment's bank, in the unit of its file: `120 tokens in the memory`."""
    unit = "chunk" if record.version == 1 else "token"
    return f"{moment.written} {unit}{'' if moment.written == 1 else 's'} in the memory"


def look_into_session(model: "Model", path: Path, question: str, longest: int) -> Look:
    """A session opened on its model and asked: its window is run again and written whole, then the question is asked in a fresh one.

    Nothing is saved. Raises a SessionError, or what look_at_model raises.
    """
    from ..statefile.keeping import expected

    look, _ = look_at_session(path)
    looker = Looker(model)
    record = read_session(path, expected(model))
    history, bank = looker.read_window(record.now)
    renderer = Renderer(model, record.document["system"], answer=longest)
    look.answered = looker.ask(question, renderer.question(question), bank, longest)
    look.layers, look.word, look.title = looker.layers, "layer", f"What {model.name} remembers of a conversation"
    look.norms = look.norms[: len(looker.layers)]  # the topics' bank is no layer's
    if history.chunks:
        look.history, look.texts = history, [looker.pieces(written.ids) for written in history.chunks]
        look.norms = np.concatenate((look.norms, history.norms()[..., 1:]), axis=-1)
        look.unit, look.begin, look.carried = "fold", len(look.times), looker.pieces(record.now.tokens[: record.now.carried])
        look.times += [f"fold {i + 1} of the window" for i in range(len(history.chunks))]
        look.notes = [note for note in look.notes if note != EMPTY]
        look.notes.append("the window was run again, fold by fold, and the question asked in a new one")
    return look
