"""A reader: which words of a message answer a question, or that none do. Knows texts and a BERT's layers; no file, no session, no model.

Question and message are one text of two segments; a logit of every piece says whether the answer begins there, another whether it ends there, and those of
the text's first piece that nothing answers (Devlin et al. 2018, arXiv 1810.04805, sections 4.2 and 4.3). Its words are an encoder's.

Axes: d width, t pieces of a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .bert import Arrays, Bert, Sizes, rounded, shapes
from .encoder import PART, PIECES, Encoder

LONGEST = 24  # pieces of an answer


class Text(NamedTuple):
    """ids of first piece, question, border, message, last piece; begin: where the message begins; offsets: of each piece, in its own text."""

    ids: tuple[int, ...]
    begin: int
    offsets: tuple[tuple[int, int], ...]


class Use(NamedTuple):
    """among: how many passages, the nearest ones, are read; weight: what a reading counts beside nearness; doubt: what it must come to at least; sure: from
    where on the model's own doubt counts for nothing."""

    among: int
    weight: float
    doubt: float
    sure: float


class Found(NamedTuple):
    """What of a message answers: its words, and the logarithm of how much likelier they are than that nothing does."""

    words: str
    odds: float


def pieces(tokenizer: Any, question: str, message: str, most: int = 2 * PIECES) -> Text:
    """What is read: the message behind the question, `most` pieces in all; a question has at most half of them."""
    around = tokenizer.encode("", add_special_tokens=True).ids
    asked, told = (tokenizer.encode(text, add_special_tokens=False) for text in (question, message))
    q = asked.ids[: most // 2 - 2]
    m = told.ids[: most - len(q) - 3]
    nowhere = (0, 0)
    offsets = (*[nowhere] * (len(q) + 2), *told.offsets[: len(m)], nowhere)
    return Text((around[0], *q, around[1], *m, around[1]), len(q) + 2, offsets)


def reader_shapes(s: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a reader's own by name: safetensors dtype and shape."""
    return {**shapes(s, words=False), "segment.message": ("F32", (s.width,)), "ends": ("F32", (2, s.width)), "ends.bias": ("F32", (2,))}


class Reader(Bert):
    """encoder: whose words these layers read. arrays: as `reader_shapes` has them. use: what its readings count for. training: how, for people."""

    def __init__(self, encoder: Encoder, arrays: Arrays, use: Use, training: Mapping[str, Any]):
        super().__init__(encoder.sizes, {**arrays, "words": encoder.arrays["words"], "words.step": encoder.arrays["words.step"]})
        self.own, self.tokenizer, self.use, self.training = arrays, encoder.tokenizer, use, dict(training)

    @classmethod
    def rounded(cls, encoder: Encoder, wide: Mapping[str, np.ndarray], use: Use, training: Mapping[str, Any]) -> "Reader":
        """Of float32 arrays, matrices made 8 bits."""
        return cls(encoder, rounded(reader_shapes(encoder.sizes), wide), use, training)

    def read(self, question: str, messages: Sequence[str], before: Sequence[str] = ()) -> list[Found]:
        """What of each message answers the question. before: of each, what it was said to, which is read with it; words of it answer nothing."""
        leads = [f"{b} " if b else "" for b in before or [""] * len(messages)]
        told = [lead + message for lead, message in zip(leads, messages, strict=True)]
        texts = [pieces(self.tokenizer, question, text, min(2 * PIECES, self.sizes.positions)) for text in told]
        found: list[Found] = []
        part: list[int] = []
        for n in range(len(texts)):
            part.append(n)
            if sum(len(texts[i].ids) for i in part) >= PART or n + 1 == len(texts):
                own, other = self.arrays["segment"], self.arrays["segment.message"]
                segments = [np.where(np.arange(len(texts[i].ids))[:, None] < texts[i].begin, own, other) for i in part]  # (t, d) each
                for i, x in zip(part, self.states([texts[i].ids for i in part], segments), strict=True):
                    found.append(_best(x @ self.arrays["ends"].T + self.arrays["ends.bias"], texts[i], told[i], len(leads[i])))
                part = []
        return found


def _best(logits: np.ndarray, text: Text, message: str, lead: int = 0) -> Found:
    """The likeliest words by logits (t, 2), and how much likelier that any words answer than that nothing does. lead: characters before which none begin."""
    begin = next((i for i in range(text.begin, len(text.ids) - 1) if text.offsets[i][0] >= lead), len(text.ids) - 1)
    own = logits[begin : len(text.ids) - 1]  # (t', 2)
    if not len(own):
        return Found("", -np.inf)
    both = own[:, :1] + own[:, 1]  # (t', t')
    both = np.where(np.triu(np.ones_like(both)) - np.triu(np.ones_like(both), LONGEST) > 0, both, -np.inf)
    first, last = np.unravel_index(int(both.argmax()), both.shape)
    offsets = text.offsets[begin:]
    return Found(message[offsets[first][0] : offsets[last][1]], float(both.max() - logits[0].sum()))
