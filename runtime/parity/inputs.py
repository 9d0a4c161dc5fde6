"""What the backends are fed: which tokens make up each chunk, and in how many calls. Everything follows from a seed.

Knows a model's tokenizer and template, no backend. Chunks are made of a conversation (talk.py, in an order that the seed decides) or of
token ids drawn evenly from the vocabulary; every fourth chunk is drawn, and all of them for a model without a tokenizer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...models.text.dialogue import PlainTemplate
from .talk import TALK

if TYPE_CHECKING:
    from ..loading import Model

SIZES = (1, 1, 2, 3, 7, 13, 32, 64, 128)  # tokens of one call
PERIOD = 4  # chunk PERIOD - 1 of every PERIOD is drawn at random
PARTIAL = 1  # chunk PARTIAL of every PERIOD ends early
Kind = Literal["text", "random"]


@dataclass(frozen=True)
class Fed:
    """One chunk: its tokens (t,) int64, what they are, and the lengths of the calls they are fed in."""

    tokens: np.ndarray
    kind: Kind
    calls: tuple[int, ...]

    def pieces(self) -> list[np.ndarray]:
        """The tokens of each call."""
        return np.split(self.tokens, np.cumsum(self.calls)[:-1])


class Inputs:
    """The chunks of one run, made when asked for: chunk `c` is the same however many are asked for, and for every backend.

    tokens: of a whole chunk, at most the model's; chunk 1 of every four has five eighths of them, so that a chunk that ends early is
    covered too. Raises PromptError when the tokenizer is not the model's.
    """

    def __init__(self, model: "Model", tokens: int, seed: int):
        self.tokens, self.seed = tokens, seed
        self.vocab = model.config.vocab_size
        self._model = model
        self._text: list[int] = []
        self._passes = 0

    @property
    def has_text(self) -> bool:
        return self._model.tokenizer is not None

    def kind(self, c: int) -> Kind:
        return "text" if self.has_text and c % PERIOD != PERIOD - 1 else "random"

    def length(self, c: int) -> int:
        return max(1, self.tokens * 5 // 8) if c % PERIOD == PARTIAL else self.tokens

    def chunk(self, c: int) -> Fed:
        """Chunk c, counted from 0."""
        kind, length = self.kind(c), self.length(c)
        rng = np.random.default_rng((self.seed, c))
        if kind == "random":
            ids = rng.integers(0, self.vocab, length)  # (t,)
        else:
            begin = sum(self.length(i) for i in range(c) if self.kind(i) == "text")
            ids = np.array(self.text(begin + length)[begin:], dtype=np.int64)  # (t,)
        return Fed(ids, kind, split(length, rng))

    def text(self, count: int) -> list[int]:
        """The first `count` ids of the conversation."""
        while len(self._text) < count:
            order = np.random.default_rng((self.seed, self._passes)).permutation(len(TALK))
            messages = [{"role": role, "content": said} for i in order for role, said in zip(("user", "assistant"), TALK[i], strict=True)]
            self._text += self._model.encode((self._model.template or PlainTemplate()).render(messages))
            self._passes += 1
        return self._text[:count]

    def reading(self, count: int) -> str:
        """A text of `count` tokens or a word less: what an assistant said, one paragraph after the other."""
        order = np.random.default_rng((self.seed, 0)).permutation(len(TALK))
        text, at = "", 0
        while len(self._model.encode(text, plain=True)) < count:
            text += TALK[order[at % len(order)]][1] + "\n\n"
            at += 1
        words = text.split(" ")
        while len(words) > 1 and len(self._model.encode(" ".join(words), plain=True)) > count:
            words.pop()
        return " ".join(words)

    def drawn(self, count: int, stream: int) -> np.ndarray:
        """`count` ids drawn evenly from the vocabulary, (t,) int64; `stream` tells draws of one seed apart."""
        return np.random.default_rng((self.seed, stream, 1)).integers(0, self.vocab, count)


def split(length: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Lengths of calls that add up to `length`: single steps and blocks, mixed."""
    calls: list[int] = []
    left = length
    while left:
        size = min(left, int(rng.choice(SIZES)))
        calls.append(size)
        left -= size
    return tuple(calls)
