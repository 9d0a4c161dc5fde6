"""How an answer says the words that were found: the first tokens of it, up to and with them. Knows a window, ids and texts; no transcript, no recall.

The model's own likeliest answer is taken where it has the words. Where it has not, they are put where the model likes them best: after so many tokens of
that answer, or after a usual beginning; a place is as good as everything up to the words' end, and an end after it, is likely.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import Backend

LONGEST = 24  # tokens of the model's own answer that are looked at, fewer where it has the words before
PLACES = 3  # where the words are tried at most
BEGINNINGS = ("It's",)
Encode = Callable[[str], Sequence[int]]
_MINE = {"i": "you", "my": "your", "mine": "yours", "our": "your", "ours": "yours", "we": "you", "me": "you", "myself": "yourself"}


class Text(NamedTuple):
    """encode: plain text to ids. decode: ids to text. ends: ids that end an answer. says: whether a text (first) has words (second), whatever their form."""

    encode: Encode
    decode: Callable[[Sequence[int]], str]
    ends: Collection[int]
    says: Callable[[str, str], bool]


class Given(NamedTuple):
    """tokens of an answer, and the logits (v,) that each was chosen by, or was put against."""

    tokens: tuple[int, ...]
    logits: tuple[np.ndarray, ...]


NOTHING = Given((), ())


def first_tokens(backend: Backend, window: Any, logits: np.ndarray, found: Sequence[str], text: Text, room: int) -> Given:
    """The first tokens of an answer that says one of the words that were found, likeliest first, after a window with `room` tokens left whose next token has
    `logits` (v,); none where they do not fit, or have no tokens. Where the model says none of them by itself, it is the first.

    The window passed in is as good as before.
    """
    begin = window.length
    own, seen, longer = [], [np.array(logits)], window  # type: list[int], list[np.ndarray], Any
    said = 0  # tokens in a row after which the answer has the likeliest words
    while len(own) < min(LONGEST, room) and int(seen[-1].argmax()) not in text.ends:
        own.append(int(seen[-1].argmax()))
        said = said + 1 if any(text.says(text.decode(own), w) for w in (found[0], yours(found[0]))) else 0
        if said == 2:
            break
        given, longer = backend.extend(np.array(own[-1:], np.int64), longer)  # (1, v)
        seen.append(np.array(given[0]))
    for words in found:
        if any(text.says(text.decode(own), w) for w in (words, yours(words))):
            return Given(*_up_to(own, seen, (words, yours(words)), text))
    return _put(backend, longer, begin, own, seen, yours(found[0]), text, room)


def yours(words: str) -> str:
    """A person's words as they are said to them: `my desk` is `your desk`."""
    return re.sub(r"(?<![\w'])(?:" + "|".join(_MINE) + r")(?![\w'])", lambda m: _MINE[m[0].lower()], words, flags=re.IGNORECASE)


def _up_to(own: Sequence[int], seen: Sequence[np.ndarray], words: Sequence[str], text: Text) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    """The fewest tokens that have the words, and still have them with one more."""
    has = [any(text.says(text.decode(own[:n]), w) for w in words) for n in range(1, len(own) + 1)]
    n = next(i for i in range(len(own)) if has[i] and all(has[i : i + 2])) + 1
    return tuple(own[:n]), tuple(seen[:n])


def _put(backend: Backend, longer: Any, begin: int, own: Sequence[int], seen: Sequence[np.ndarray], words: str, text: Text, room: int) -> Given:
    """longer: the window with the model's own answer in it, which began at `begin`."""
    inside, alone = tuple(text.encode(" " + words)), tuple(text.encode(words[:1].upper() + words[1:]))
    if not inside or not alone:  # a vocabulary may lack every sign of them
        return NOTHING
    logs = [_log(row) for row in seen]
    known = np.cumsum([0.0, *(log[token] for log, token in zip(logs, own, strict=False))])
    likely = [float(known[n] + log[(inside if n else alone)[0]]) for n, log in enumerate(logs)]
    places = sorted(range(len(logs)), key=lambda n: -likely[n])[:PLACES]
    # The later places first: what is fed at one overwrites what stands after it.
    tries = [(n, inside if n else alone) for n in sorted(places, reverse=True)]
    tries += [(0, (*text.encode(b), *inside)) for b in BEGINNINGS]
    stops = [*text.ends, *(i for mark in (".", "!") for i in tuple(text.encode(mark))[:1])]
    best, found = -np.inf, NOTHING
    for n, ids in tries:
        if n + len(ids) > room:
            continue
        given, longer = backend.extend(np.array(ids, np.int64), backend.rewind(longer, begin + n), all_logits=True)  # (1, t, v)
        rows = [seen[n], *np.array(given[0])]
        said = [_log(row) for row in rows]
        score = float(known[n]) + sum(float(log[token]) for log, token in zip(said, ids, strict=False)) + float(np.logaddexp.reduce(said[-1][stops]))
        if score > best:
            best, found = score, Given((*own[:n], *ids), (*seen[:n], *rows[:-1]))
    return found


def _log(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max()
    out: np.ndarray = x - np.log(np.exp(x).sum())
    return out
