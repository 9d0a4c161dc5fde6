"""One training step on plain text: several chunks in a row, every next token predicted, gradients through the memory.

Knows the loss; the optimiser is run.py's. Cell gated.

Axes: b streams, t positions of a chunk, v vocabulary.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..lm2 import LM2
from ..textfile import cut
from .plan import Stage, TrainError
from .run import Terms

PIECE = 2000


class TextTask:
    """paragraphs: texts in reading order; a stream begins at a drawn one and goes on through those after it. Of one with more than PIECE
    characters it may begin at any piece: else no stream would reach what follows its first chunks. begin: ids that a text begins with."""

    aids: torch.nn.Module | None = None

    def __init__(self, model: LM2, encode: Callable[[str], list[int]], paragraphs: Sequence[str], recompute: bool = False, begin: Sequence[int] = ()):
        if not paragraphs:
            raise TrainError("there is no text: --task text reads .txt, .md, .jsonl and .json in DATA/background and DATA/tinystories")
        self.model, self.encode, self.paragraphs, self.recompute, self.begin = model, encode, paragraphs, recompute, tuple(begin)
        self.pieces = [piece for text in paragraphs for piece in cut(text + "\n", PIECE)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _stream(self, rng: random.Random, tokens: int) -> list[int]:
        first = at = rng.randrange(len(self.pieces))
        ids: list[int] = list(self.begin)
        while len(ids) < tokens:
            ids += self.encode(self.pieces[at % len(self.pieces)])
            at += 1
            if len(ids) == len(self.begin) and at - first >= len(self.pieces):
                raise TrainError("the tokenizer makes no token of any of the text: give text in a language it knows")
        return ids[:tokens]

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Mean cross-entropy over all chunks; figures also give the last chunk's."""
        t, chunks = self.model.config.memory.chunk, rng.randint(stage.least, stage.most)
        ids = torch.tensor([self._stream(rng, chunks * t + 1) for _ in range(stage.batch)], device=self.model.device)
        bank = self.model.initial_bank(stage.batch)
        losses = []
        for c in range(chunks):
            part = ids[:, c * t : (c + 1) * t]  # (b, t)
            wanted = ids[:, c * t + 1 : (c + 1) * t + 1]
            loss, bank = self._chunk(part, wanted, bank, c)
            losses.append(loss)
        total = torch.stack(losses).mean()
        return Terms(total, total.new_zeros(()), {"last_chunk": float(losses[-1].detach())}, {}, ids.numel())

    def _chunk(self, ids: Tensor, wanted: Tensor, bank: Tensor, number: int) -> tuple[Tensor, Tensor]:
        def forward(bank: Tensor) -> tuple[Tensor, Tensor]:
            logits, after = self.model(ids, bank, number * self.model.config.memory.chunk)
            return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten()), after

        if self.recompute:
            return checkpoint(forward, bank.requires_grad_(), use_reentrant=False)
        return forward(bank)
