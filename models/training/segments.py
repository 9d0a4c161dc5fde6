"""A batch of chunks as the segments that a baseline reads: as many whole chunks in each as fit, and what is asked behind which of its tokens.

Axes: b streams, t positions of a segment's text, q questions after a segment, s positions of a question.
"""

from typing import NamedTuple

import numpy as np

from .asked import Batch
from .stories import IGNORED


class Segment(NamedTuple):
    """text (b, t), lengths (b,), asked and targets (b, q, s), seen (b, q): tokens of the text before a question; all int64. tasks (b, q), "" where there
    is no question. asked, targets, seen are None where nothing is asked."""

    text: np.ndarray
    lengths: np.ndarray
    asked: np.ndarray | None
    targets: np.ndarray | None
    seen: np.ndarray | None
    tasks: list[list[str]]


def segments(batch: Batch, size: int) -> list[Segment]:
    """The segments of all streams, of at most `size` tokens, side by side from each stream's first chunk on."""
    streams = [_grouped(batch, i, size) for i in range(len(batch.ids))]
    return [_joined([s[g] if g < len(s) else ([], []) for s in streams]) for g in range(max(map(len, streams)))]


Question = tuple[int, np.ndarray, np.ndarray, str]  # seen, ids (s,), targets (s,), task
Group = tuple[list[int], list[Question]]


def _grouped(batch: Batch, i: int, size: int) -> list[Group]:
    out: list[Group] = []
    for c, length in enumerate(batch.lengths[i].tolist()):
        if not length:
            continue
        if not out or len(out[-1][0]) + length > size:
            out.append(([], []))
        text, questions = out[-1]
        text += batch.ids[i, c, :length].tolist()
        asked = batch.asked[c]
        if asked is not None and i in asked.streams:
            row = asked.streams.index(i)
            questions += [(len(text), asked.ids[row, k], asked.targets[row, k], task) for k, task in enumerate(asked.tasks[row]) if task]
    return out


def _joined(groups: list[Group]) -> Segment:
    lengths = np.array([len(text) for text, _ in groups], np.int64)
    text = np.zeros((len(groups), int(lengths.max())), np.int64)
    for i, (read, _) in enumerate(groups):
        text[i, : len(read)] = read
    most, longest = max(len(q) for _, q in groups), max((len(q[1]) for _, questions in groups for q in questions), default=0)
    if not most:
        return Segment(text, lengths, None, None, None, [[] for _ in groups])
    asked = np.zeros((len(groups), most, longest), np.int64)
    targets, seen = np.full(asked.shape, IGNORED), np.zeros(asked.shape[:2], np.int64)
    tasks = [[""] * most for _ in groups]
    for i, (_, questions) in enumerate(groups):
        for k, (at, ids, wanted, task) in enumerate(questions):
            asked[i, k, : len(ids)], targets[i, k, : len(wanted)], seen[i, k], tasks[i][k] = ids, wanted, at, task
    return Segment(text, lengths, asked, targets, seen, tasks)
