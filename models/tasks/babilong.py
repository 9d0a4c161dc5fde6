"""BABILong: bAbI's facts hidden in book text, at nominal lengths. Builds samples and their chunks; knows no model, template or tokenizer.

Source: Kuratov et al., arXiv 2406.10149. All facts before a question, in their order, each put into a uniformly drawn gap between
sentences of a book (those under 10 tokens dropped), until the nominal length less 300 tokens for the prompt is filled; 0k is the facts alone.
Lengths are counted by a function that is passed in. Upstream counts with GPT-2's tokenizer; `estimate` stands in for it.
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import textfile
from ..errors import LM2Error
from . import babi
from .recall import Conversation, Turn

PROMPT_TOKENS = 300
SENTENCE_TOKENS_MIN, SENTENCE_TOKENS_MAX = 10, 700  # what a nominal length of 1k leaves; the longest of 21 novels has 604
PIECE_TOKENS = 100
BOOK_BYTES_MAX = 64 << 20
BOOKS_HELD_OUT_PERCENT = 20
BOOK_ENDINGS = (".txt", ".md")
OK = "Ok."

_PIECE = re.compile(r"\w+|[^\w\s]")
_BORDER = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z])")
_TITLES = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Capt|Col|Sir|Rev|Esq|[A-Z])\.[\"'”’)]*$")
_LENGTH = re.compile(r"(\d+)([kKmM]?)")
_NO_BOOK = re.compile(r"qa\d+_|LICENSE|README|\.")


class BabilongError(LM2Error):
    """A length or a book cannot be used. The message names it."""


class NoBook(BabilongError):
    """A folder has no book."""


class Book(NamedTuple):
    """A book's sentences, each of at least SENTENCE_TOKENS_MIN tokens, and the tokens of each."""

    name: str
    sentences: tuple[str, ...]
    tokens: tuple[int, ...]


class Sample(NamedTuple):
    """One question in its text. sentences: facts and book sentences in order; facts, support: which of them are facts, and which of these decide.

    length: the nominal one in tokens. tokens: of the sentences, as they were counted. number: of this sample in its stream.
    """

    task: str
    number: int
    length: int
    sentences: tuple[str, ...]
    facts: tuple[int, ...]
    support: tuple[int, ...]
    question: str
    answer: str
    labels: tuple[str, ...]
    tokens: int


def estimate(text: str) -> int:
    """About as many tokens as GPT-2's kind of tokenizer makes of English: one for a mark, one for each begun 8 letters of a word.

    A stated estimate, not GPT-2's count: within 11% of SmolLM2's tokenizer (of the same kind and size) on each of 21 novels, 2% over all.
    """
    return sum(1 + (len(piece) - 1) // 8 for piece in _PIECE.findall(text))


def parse_length(text: str) -> int:
    """`0k`, `1k`, `500`, `32k`, `1M` as tokens (k is 1000). Raises BabilongError."""
    found = _LENGTH.fullmatch(text.strip())
    if not found:
        raise BabilongError(f"length {text!r} must be a number of tokens such as 0k, 1k, 32k")
    return int(found[1]) * {"": 1, "k": 1000, "m": 1000000}[found[2].lower()]


def sentences(text: str) -> list[str]:
    """Sentences of a text, a paragraph a line or wrapped. Ends: . ! ? before a capital, but not after a title or an initial."""
    out = []
    for paragraph in textfile.paragraphs(text):
        begin = 0
        paragraph = " ".join(paragraph.split())
        for border in _BORDER.finditer(paragraph):
            part = paragraph[begin : border.end()].strip()
            if _TITLES.search(part):
                continue
            out.append(part)
            begin = border.end()
        if paragraph[begin:]:
            out.append(paragraph[begin:])
    return out


def book(name: str, text: str, count_tokens: Callable[[str], int] = estimate) -> Book:
    """A book of its text. A sentence of more than SENTENCE_TOKENS_MAX (there is no stop for pages) counts as several, of PIECE_TOKENS at most.

    Raises BabilongError when no sentence is long enough.
    """
    counted = []
    for sentence in sentences(text):
        tokens = count_tokens(sentence)
        parts = [sentence] if tokens <= SENTENCE_TOKENS_MAX else pieces([sentence], count_tokens, PIECE_TOKENS)[0]
        counted += [(part, tokens if len(parts) == 1 else count_tokens(part)) for part in parts]
    kept = [(s, n) for s, n in counted if n >= SENTENCE_TOKENS_MIN]
    if not kept:
        raise BabilongError(f"{name} has no sentence of at least {SENTENCE_TOKENS_MIN} tokens: give a book in English")
    return Book(name, tuple(s for s, _ in kept), tuple(n for _, n in kept))


def book_home(folder: Path) -> tuple[Path, bool]:
    """Where the books of a data folder are, its subfolder `background` or `books`, or itself; and whether folders in it count too."""
    inside = next((folder / name for name in ("background", "books") if (folder / name).is_dir()), None)
    return (folder, False) if inside is None else (inside, True)


def named_books(folder: Path, nested: bool) -> dict[str, Path]:
    """Books (*.txt, *.md) of a folder, and with `nested` of those in it, by name: the path within it without its ending.

    Raises NoBook when there is none, BabilongError for two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*") if nested else folder.glob("*")):
        if path.suffix.lower() not in BOOK_ENDINGS or no_book(path) or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise BabilongError(f"{path} and {found[name].name} are one name, {name}: rename one of them")
        found[name] = path
    if not found:
        raise NoBook(f"{folder} has no book (*.txt, *.md): give the folder with the background texts")
    return found


def no_book(path: Path) -> bool:
    """Whether a file's name says that it is none: bAbI's, a licence, a README, a hidden file."""
    return _NO_BOOK.match(path.name) is not None


def read_text(path: Path) -> str:
    """A book's text. Raises BabilongError naming the file: too large, unreadable, not UTF-8, a NUL byte."""
    return textfile.read_text(path, BOOK_BYTES_MAX, BabilongError)


def book_part(names: Iterable[str], part: str, held_out: int = BOOKS_HELD_OUT_PERCENT) -> tuple[str, ...]:
    """The names of one part, `train` or `validation`: a digest of the name decides. Where it leaves a part empty, it gets the nearest name.

    A single book is in both parts. Raises ValueError for another part.
    """
    if part not in babi.PARTS:
        raise ValueError(f"part {part!r} must be one of {', '.join(babi.PARTS)}")
    order = sorted(set(names), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    if len(order) < 2:
        return tuple(order)
    last = sum(hashlib.sha256(os.fsencode(name)).digest()[0] * 100 < held_out * 256 for name in order)
    last = min(max(last, 1), len(order) - 1)
    return tuple(sorted(order[:last] if part == "validation" else order[last:]))


def samples(
    stories: Sequence[babi.Story], books: Sequence[Book], length: int, seed: int, count_tokens: Callable[[str], int] = estimate
) -> Iterator[Sample]:
    """Endless samples of one task at one nominal length; each depends on the data, `seed`, `length` and its number alone.

    Questions are drawn evenly from all of `stories`. books may be empty for length 0 (or one below what the facts take).
    Raises BabilongError without stories, or without books where some are needed.
    """
    asked = [(story, question) for story in stories for question in story.questions]
    if not asked:
        raise BabilongError("no question to ask: give bAbI stories")
    number = 0
    while True:
        rng = random.Random(f"babilong {asked[0][0].task} {length} {seed} {number}")
        story, question = rng.choice(asked)
        yield sample(story, question, books, length, rng, count_tokens, number)
        number += 1


def sample(
    story: babi.Story,
    question: babi.Question,
    books: Sequence[Book],
    length: int,
    rng: random.Random,
    count_tokens: Callable[[str], int] = estimate,
    number: int = 0,
) -> Sample:
    """One question hidden in `length` nominal tokens of book text. Raises BabilongError where books are needed and there are none."""
    facts = story.facts_before(question)
    own = sum(count_tokens(fact.text) for fact in facts)
    text, taken = _background(books, max(0, length - PROMPT_TOKENS - own), rng)
    gaps = sorted(rng.randint(0, len(text)) for _ in facts)
    merged: list[str] = []
    places: list[int] = []
    for i in range(len(text) + 1):
        while len(places) < len(facts) and gaps[len(places)] == i:
            merged.append(facts[len(places)].text)
            places.append(len(merged) - 1)
        if i < len(text):
            merged.append(text[i])
    support = tuple(places[j] for j, fact in enumerate(facts) if fact.id in question.support)
    return Sample(
        story.task, number, length, tuple(merged), tuple(places), support, question.text, question.answer, babi.labels(story.task), own + taken
    )  # fmt: skip


def pieces(sentences: Sequence[str], count_tokens: Callable[[str], int], room: int) -> tuple[list[str], list[int]]:
    """Sentences joined by blanks into texts of at most `room` tokens, and the text each sentence begins in.

    A sentence of more than `room` is cut between words, a word of more than `room` between characters. Raises BabilongError for a
    character that does not fit.
    """
    texts: list[str] = []
    where: list[int] = []
    for sentence in sentences:
        joined = f"{texts[-1]} {sentence}" if texts else sentence
        if texts and count_tokens(joined) <= room:
            texts[-1] = joined
            where.append(len(texts) - 1)
            continue
        where.append(len(texts))
        texts += _cut(sentence, count_tokens, room)
    return texts, where


def _cut(sentence: str, count_tokens: Callable[[str], int], room: int) -> Iterator[str]:
    """A sentence in texts of at most `room` tokens. The end of a word that was cut begins a text with the words after it."""
    words = sentence.split(" ")
    at = 0
    while at < len(words):
        fit = _fitting(words, at, " ", count_tokens, room)
        if fit:
            yield " ".join(words[at : at + fit])
            at += fit
        else:
            *parts, words[at] = _cut_word(words[at], count_tokens, room)
            yield from parts


def _cut_word(word: str, count_tokens: Callable[[str], int], room: int) -> list[str]:
    parts, begin = [], 0
    while begin < len(word):
        n = _fitting(word, begin, "", count_tokens, room)
        if n == 0:
            raise BabilongError(
                f"the character {word[begin]!r} has {count_tokens(word[begin])} tokens and there is room for {room}: use larger chunks"
            )
        parts.append(word[begin : begin + n])
        begin += n
    return parts


def _fitting(parts: Sequence[str], begin: int, between: str, count_tokens: Callable[[str], int], room: int) -> int:
    """How many of the parts from `begin` on fit, joined, into `room` tokens."""
    return textfile.longest(len(parts) - begin, lambda n: count_tokens(between.join(parts[begin : begin + n])), room)


def conversation(sample: Sample, count_tokens: Callable[[str], int], room: int) -> Conversation:
    """The sample as chunks to be committed, each one message of whole sentences with at most `room` tokens, answered `Ok.`, and the question.

    count_tokens: of the model's own tokenizer. distance: chunks from the last deciding fact to the question. Raises BabilongError for a fact
    of more than `room` tokens: cut in two it would be another.
    """
    for i in sample.facts:
        if (tokens := count_tokens(sample.sentences[i])) > room:
            raise BabilongError(
                f"the fact {_short(sample.sentences[i])} ({sample.task}) has {tokens} tokens, a chunk has room for {room}: use larger chunks"
            )
    texts, where = pieces(sample.sentences, count_tokens, room)
    chunks = tuple((Turn("user", text), Turn("assistant", OK)) for text in texts)
    last = where[sample.support[-1]] if sample.support else len(texts) - 1
    return Conversation(chunks, sample.question, sample.answer, sample.labels, sample.task, len(texts) - last, f"{sample.answer}.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _background(books: Sequence[Book], room: int, rng: random.Random) -> tuple[list[str], int]:
    """Consecutive sentences from a drawn place on, going on in further books, while they fit into `room` tokens; and their tokens."""
    text: list[str] = []
    taken = 0
    if room < SENTENCE_TOKENS_MIN:
        return text, taken
    if not books:
        raise BabilongError(f"{room} tokens of book text are needed and there is no book: give some, or ask for length 0k")
    order = rng.sample(range(len(books)), len(books))
    at, begin = 0, rng.randrange(len(books[order[0]].sentences))
    while True:
        here = books[order[at % len(order)]]
        for sentence, count in zip(here.sentences[begin:], here.tokens[begin:], strict=True):
            if taken + count > room:
                return text, taken
            text.append(sentence)
            taken += count
        at, begin = at + 1, 0
