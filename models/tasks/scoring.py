"""Is an answer right? Whole words, by the labels of a task, or by BABILong's published rule; and what always giving the commonest answer would score. Knows texts only."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

_END = re.compile(r"[.!?](?=\s|$)|\n")
Z95 = 1.959963984540054


class Floor(NamedTuple):
    """The commonest answer and its share of all answers, from 0 to 1."""

    answer: str
    share: float


def first_sentence(text: str) -> str:
    """The first sentence, lower-cased, its full stop included. A stop ends a sentence where a blank or the text's end follows: not in 3.5."""
    text = text.strip().lower()
    end = _END.search(text)
    return text[: end.end()].rstrip() if end else text


def mentioned(text: str, labels: Iterable[str]) -> set[str]:
    """Which labels stand in the text as whole words, case-insensitive, lower-cased. Of labels inside one another (`red`, `dark red`) the longest."""
    words = sorted({label.lower() for label in labels if label.strip()}, key=lambda label: (-len(label), label))
    if not words:
        return set()
    pattern = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
    return {" ".join(found.split()) for found in re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text.lower())}


def is_right(reply: str, answer: str, labels: Iterable[str], question: str) -> bool:
    """Whether the reply's first sentence names the answer, and no other label but those the question names.

    An answer of several words set apart by commas (bAbI's lists) is a set: all of them, in any order. BABILong's rule, but for whole
    words where it takes parts of words (its `none` counts as `one`).
    """
    wanted = {" ".join(part.lower().split()) for part in answer.split(",") if part.strip()}
    known = {*labels, *wanted}
    found = mentioned(first_sentence(reply), known)
    return bool(wanted) and wanted <= found and found - wanted <= mentioned(question, known)


def is_right_published(reply: str, answer: str, labels: Iterable[str], question: str) -> bool:
    """The same question judged by BABILong's own rule (Kuratov et al., arXiv 2406.10149, its metrics): up to the first full stop, labels wherever their
    letters stand, also inside of words, without those that stand in the question; right when what is left is the answer and nothing else.

    An answer of several words set apart by commas wants all of them.
    """
    said, asked = reply.lower().partition(".")[0], question.lower()
    for mark in ("<context>", "<example>"):
        said = said.partition(mark)[0]
    wanted = {part.strip() for part in answer.lower().split(",")}
    named = {label.lower() for label in labels}
    return bool(wanted) and {label for label in named if label in said and label not in asked} == wanted


def majority(answers: Iterable[str]) -> Floor:
    """The commonest answer (of equally common ones the first in the alphabet) and its share. Raises ValueError for no answers."""
    counts = Counter(answers)
    if not counts:
        raise ValueError("no answers to take a majority of")
    answer = min(counts, key=lambda a: (-counts[a], a))
    return Floor(answer, counts[answer] / counts.total())


def wilson(right: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for `right` of `count`, 95% unless told: from 0 to 1, sound at 0 and at all. (0, 1) for a count of 0."""
    if not 0 <= right <= count:
        raise ValueError(f"{right} right of {count} is no proportion")
    if count == 0:
        return 0.0, 1.0
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    low = 0.0 if right == 0 else max(0.0, middle - half)
    return low, 1.0 if right == count else min(1.0, middle + half)
