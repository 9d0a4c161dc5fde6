"""What conversations with people are made of, for a given chat model: turns as its template puts them, the backbone's own answers, dialogues.

Knows tokenizers, templates and data folders; what is drawn of it is threads.py's. The backbone's answers take minutes, so they are kept in a file.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..atomic import write_file
from ..lm2 import LM2
from ..tasks.natural import talk
from ..tasks.natural.dialogues import Dialogue, dialogues
from ..tasks.varied import Varied
from ..text.rendered import encode_rendered
from ..text.tokenizer import Tokenizer
from ..textfile import read_text
from . import answers, sources, vocabulary
from .dialogues import MARKED
from .leftout import LeftOut
from .plan import TrainError
from .threads import Encode, Threads, Turn
from .turns import Turns

ANSWERS, ANSWER_TOKENS, ANSWERS_BYTES_MAX = "answers.json", 64, 1 << 24
AT_ONCE = 32
PASSAGES = 300, 1500, 41  # paragraphs of a book, stories of a file, words of a paragraph at least
Say = Callable[[str], None]


def threads(
    model: LM2, key: str, tokenizer: Tokenizer, turns: Turns, data: Path | None, out: Path, seed: int, say: Say, ask: bool = True
) -> Threads:
    """What `--task find` and chat draw from. ask: what the backbone itself answers is used as well. key: of the backbone, whose answers are kept in
    `out`/answers.json. Raises TrainError for a file of another one."""
    head, turn, asked, said, plain = turns_of(tokenizer, turns)
    names, words = vocabulary.words(tokenizer.vocabulary())
    say(f"values drawn from {len(names)} names and {len(words)} words of the vocabulary, beside the lists")
    own = own_answers(model, key, tokenizer, turns, out, seed, say) if ask else {}
    with_values, others = _dialogues(data, say)
    left = LeftOut()
    books = sources.paragraphs(data, *PASSAGES, left) if data is not None else []
    say(f"{len(books):,} passages of books and stories{f'; left out: {left}' if left else ''}")
    begin = tokenizer.encode("", add_special=True, plain=True)
    return Threads(head, turn, asked, said, plain, Varied(names, words), own, with_values, others, books, begin)


def own_answers(model: LM2, key: str, tokenizer: Tokenizer, turns: Turns, out: Path, seed: int, say: Say) -> dict[str, str]:
    """What the backbone itself answers where nothing was told, kept in `out`/answers.json. Raises TrainError for a file of another backbone."""
    head, _, asked, _, _ = turns_of(tokenizer, turns)
    questions = [*talk.ordinary("train"), *talk.unknown(), *answers.questions(seed), *answers.tellings(seed)]
    return _answers(model, key, tokenizer, questions, [[*head, *asked(q)] for q in questions], out / ANSWERS, say)


def marked(data: Path | None, say: Say) -> list[Dialogue]:
    """The training dialogues of a folder in which values stand marked; none without one."""
    return _dialogues(data, say)[0]


def turns_of(tokenizer: Tokenizer, turns: Turns) -> tuple[list[int], Turn, Encode, Encode, Encode]:
    """What `Threads` asks of a tokenizer and a template: the head's ids, `turn`, `asked`, `said` and `encode`."""
    encode, plain = tokenizer.encode, partial(tokenizer.encode, plain=True)

    def rendered(render: Callable[[str], str], said: str) -> list[int]:
        return encode(render(said)) if encode(said) == plain(said) else encode_rendered(tokenizer, render, (said,))

    def turn(role: str, content: str) -> list[int]:
        return rendered(lambda said: turns.wrap(role, said), content)

    def asked(content: str) -> list[int]:
        return rendered(lambda said: turns.wrap("user", said) + turns.opening, content)

    opening = encode(turns.opening)

    def said(content: str) -> list[int]:
        body = turn("assistant", content)
        if body[: len(opening)] == opening:
            body = body[len(opening) :]
        else:  # the opening's last token took a part of the answer with it
            body = rendered(lambda text: turns.wrap("assistant", text)[len(turns.opening) :], content)
        text = turns.wrap("assistant", content)
        blank = encode(text[len(text.rstrip()) :])  # what a template puts between turns is nobody's to say
        return body[: -len(blank)] if blank and body[-len(blank) :] == blank else body
    return encode(turns.head), turn, asked, said, plain


def _dialogues(data: Path | None, say: Say) -> tuple[list[Dialogue], list[list[tuple[str, str]]]]:
    if data is None:
        return [], []
    left = LeftOut()
    others = sources.dialogues(data, left=left)
    marked = [d for d in dialogues(data) if d.split == "train" and d.values] if any((data / "chat").glob(MARKED)) else []
    say(f"{len(marked):,} dialogues with marked values, {len(others):,} others{f'; left out: {left}' if left else ''}")
    return marked, others


def _answers(model: LM2, key: str, tokenizer: Tokenizer, questions: Sequence[str], prompts: Sequence[Sequence[int]], file: Path, say: Say) -> dict[str, str]:
    """The backbone's own greedy answers, from the file as far as it has them; written as they come."""
    found: dict[str, str] = {}
    if file.exists():
        try:
            record = json.loads(read_text(file, ANSWERS_BYTES_MAX, TrainError))
            found = {str(q): str(a) for q, a in record["answers"].items()}
            of = record["backbone"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TrainError(f"{file} is not a file of answers: remove it to have them made again") from None
        if of != key:
            raise TrainError(f"{file} has answers of backbone {str(of)[:12]}, this one is {key[:12]}: remove it, or give another --out")
    missing = sorted((i for i, q in enumerate(questions) if q not in found), key=lambda i: len(prompts[i]))
    ends = (*model.config.eos_token_id, *tokenizer.ends())
    for begin in range(0, len(missing), AT_ONCE):
        say(f"asking the backbone what it answers without a memory: {begin} of {len(missing)}")
        part = missing[begin : begin + AT_ONCE]
        for i, ids in zip(part, answers.answer(model, [prompts[i] for i in part], ends, ANSWER_TOKENS), strict=True):
            found[questions[i]] = tokenizer.decode(ids, skip_special=True).strip() or "."
        body = json.dumps({"backbone": key, "answers": found}, indent=0).encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda f, body=body: f.write(body))  # type: ignore[misc]
    return {q: found[q] for q in questions}
