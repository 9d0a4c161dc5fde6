"""One answer in the making: logits to tokens to text, and why it ended. Knows sampling, text and stop strings; no memory, no turns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...models.text.streaming import Detokenizer, StopStrings
from .sampling import Sampler, Sampling

if TYPE_CHECKING:
    from ..loading import Model


@dataclass(frozen=True)
class Reply:
    """What the last answer was and cost. finish: `stop` (end of turn), `stop-string`, `length`, `interrupted`, `error`. Times in seconds.

    message: the user's, whole; None for a continued plain text.
    """

    text: str
    message: str | None
    prompt_tokens: int
    tokens: tuple[int, ...]
    finish: str
    prefill_s: float
    decode_s: float


class Answer:
    """Grows token by token. `finish` is empty until it ended. Raises PromptError for a bad seed or stop string before anything is made.

    stop: strings that end the answer and are not shown. continuing: the text goes on from a prompt, so a leading space is kept.
    """

    def __init__(
        self,
        model: "Model",
        sampling: Sampling,
        seed: int,
        draws: int,
        stop: Iterable[str],
        ignore_eos: bool = False,
        continuing: bool = False,
    ):
        self._sampler = Sampler(sampling, seed, draws)
        self._words = Detokenizer(model.text, skip_special=True, continuing=continuing)
        self._stops = StopStrings(stop if isinstance(stop, str) else tuple(stop))
        self._ends = frozenset() if ignore_eos else model.eos
        self._text: list[str] = []
        self.tokens: list[int] = []
        self.finish = ""

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def draws(self) -> int:
        """Random numbers used in all, those before this answer included."""
        return self._sampler.draws

    def choose(self, logits: np.ndarray, recent: Sequence[int]) -> int | None:
        """The next token after logits (v,), or None (and finish `stop`) where the model ends its turn. recent: tokens of the chunk so far."""
        token = self._sampler.sample(logits, recent)
        if token in self._ends:
            self.finish = "stop"
            return None
        return token

    def add(self, token: int) -> str:
        """Text that can be shown now that `token` was added; often nothing."""
        self.tokens.append(token)
        return self._shown(self._words.add(token))

    def end(self, finish: str) -> str:
        """The text held back until now. `finish` is why, unless that is settled."""
        last = ""
        if self.finish != "stop-string":
            last = self._shown(self._words.flush())
        if self.finish != "stop-string" and (held := self._stops.flush()):
            self._text.append(held)
            last += held
        self.finish = self.finish or finish
        return last

    def _shown(self, text: str) -> str:
        piece, stopped = self._stops.feed(text)
        if stopped:
            self.finish = "stop-string"
        if piece:
            self._text.append(piece)
        return piece
