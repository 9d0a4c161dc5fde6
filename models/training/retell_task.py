"""Learning to answer from messages that were brought back: the opening of a recall, keys and values of every layer, and one step.

The backbone stands still (prefix tuning: Li and Liang 2021, arXiv 2101.00190). Every sample is one window: the opening, a message or two of which one tells
what is asked for or none does, the question, and the answer, whose tokens are to be said. Where none does, that is the first token of UNSAID.

Axes: L layers, h query heads, k key/value heads, p positions of the opening, e head width, n tokens of all samples, v vocabulary.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lm2 import LM2
from ..opening import Opening
from ..recall import Recall
from .brought import UNSAID, Brought, Encode, Sample
from .frozen import states
from .plan import Stage
from .run import Terms
from .tellings import Tellings

LEAD, ITEM, ASK = "I told you before:\n", "- ", "\n"
# What an untrained opening is made of: two questions, each with what was said before it, and what to answer.
SHOWN = (
    (("My cousin Aurel keeps two llamas, Biscuit and Momo.", "The dentist moved me to a quarter past four."), "When do I see the dentist?",
     "You see the dentist at a quarter past four."),
    (("we've painted the kitchen sage in the end", "I left the spare key with Mrs Oduya.", "Not Monday after all, they're coming on the 14th."),
     "who's got my spare key?", "Mrs Oduya has your spare key."),
)  # fmt: skip
VALUE = 3.0  # how often a value's token counts


class Words(NamedTuple):
    """How a model's texts become ids. turn: a user's turn and the opening of the answer, after others; first: the same where a window begins;
    plain: text; closing: what ends an answer."""

    turn: Encode
    first: Encode
    plain: Encode
    closing: tuple[int, ...]


class OpeningMaps(nn.Module):
    """keys and values (L, k, p, e) as steps from where they began, each layer's in its own standard deviation."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.begun = keys, values  # (L, k, p, e) each
        self.size = tuple(x.std(dim=(1, 2, 3), keepdim=True) for x in self.begun)  # (L, 1, 1, 1) each
        self.keys, self.values = nn.Parameter(torch.zeros_like(keys)), nn.Parameter(torch.zeros_like(values))

    @property
    def positions(self) -> int:
        return int(self.keys.shape[2])

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (1, k, p, e) each."""
        (k, v), (ks, vs) = self.begun, self.size
        return (k[i] + ks[i] * self.keys[i])[None], (v[i] + vs[i] * self.values[i])[None]

    @torch.no_grad()
    def opening(self) -> Opening:
        """As half-precision arrays."""
        layers = [self.layer(i) for i in range(len(self.keys))]
        keys, values = (torch.cat([layer[j] for layer in layers]).half().cpu().numpy() for j in (0, 1))
        return Opening(keys, values)


class RetellTask(Brought):
    """recall: whose finder chooses what stands beside what is asked for, or in its place; begin from its opening, or where `fresh`, from SHOWN."""

    def __init__(self, model: LM2, tellings: Tellings, words: Words, ids: Encode, recall: Recall, seed: int, fresh: bool):
        super().__init__(tellings, ids, recall, seed)
        self.model, self.words, self.unsaid = model.requires_grad_(False), words, words.plain(UNSAID)[0]
        self.tables = model.tables(min(2048, model.config.max_position_embeddings))
        keys, values = self.shown() if fresh else (torch.from_numpy(x.astype(np.float32)).to(model.device) for x in recall.opening)
        self.maps = OpeningMaps(keys, values)
        self.aids: nn.Module | None = self.maps

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def message(self, passages: Sequence[str], question: str) -> list[int]:
        """What is answered, as ids."""
        return list(self.words.turn(self.recall.message(list(passages), question)))

    @torch.no_grad()
    def shown(self) -> tuple[Tensor, Tensor]:
        """Keys and values (L, k, p, e) of SHOWN, read by the backbone."""
        ids: list[int] = []
        for n, (passages, question, answer) in enumerate(SHOWN):
            turn = self.words.turn if n else self.words.first
            ids += [*turn(self.recall.message(list(passages), question)), *self.words.plain(answer), *self.words.closing]
        kept: list[tuple[Tensor, Tensor]] = []
        states(self.model, self.tables, [ids], kept=kept)
        return torch.stack([k[0] for k, _ in kept]), torch.stack([v[0] for _, v in kept])

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Cross-entropy of the answers' tokens, a value's counted VALUE times, and of whether anything is answered at all."""
        return self.loss([self.sample(rng) for _ in range(stage.batch)])

    def loss(self, samples: Sequence[Sample]) -> Terms:
        """See `step`. hits: answers whose value is right at every token; messages taken for an answer that are one, and not taken that are none."""
        asked = [self.message([p.whole for p in s.passages], s.question) for s in samples]
        said = [[*self.words.plain(s.answer), *self.words.closing[:1]] if s.value else [self.unsaid] for s in samples]
        places = [self._places(body, s.value) if s.value else [] for body, s in zip(said, samples, strict=True)]
        texts = [[*a, *b][:-1] for a, b in zip(asked, said, strict=True)]
        rows, at, wanted, weights, begins = list[int](), list[int](), list[int](), list[float](), list[int]()
        before = 0
        for r, (a, b) in enumerate(zip(asked, said, strict=True)):
            begins.append(len(at))
            for n, token in enumerate(b):
                rows.append(r)
                at.append(before + len(a) - 1 + n)
                wanted.append(token)
                weights.append(0.0 if not samples[r].value else VALUE if n in places[r] else 1.0)
            before += len(texts[r])
        at_ends = states(self.model, self.tables, texts, self.maps)[at]  # (answers' tokens, d)
        logits = self.model.lm_head(at_ends).float()  # (answers' tokens, v)
        goal, weight = torch.tensor(wanted, device=logits.device), torch.tensor(weights, device=logits.device)
        each = F.cross_entropy(logits, goal, reduction="none")
        odds = said_odds(logits[begins], self.unsaid)  # (samples,)
        answered = torch.tensor([bool(s.value) for s in samples], device=logits.device)
        whether = F.binary_cross_entropy_with_logits(odds, answered.float())
        right = (logits.argmax(-1) == goal).tolist()
        hits = {"told": [all(right[begins[r] + n] for n in places[r]) for r in range(len(samples)) if places[r]]}
        hits["taken"] = [o > 0 for o, s in zip(odds.tolist(), samples, strict=True) if s.value]
        hits["left"] = [o <= 0 for o, s in zip(odds.tolist(), samples, strict=True) if not s.value]
        loss = (each * weight).sum() / weight.sum().clamp_min(1.0) + whether
        return Terms(loss, loss.new_zeros(()), {"whether": float(whether.detach())}, hits, before)

    @torch.no_grad()
    def odds(self, passages: Sequence[str], question: str) -> float:
        """The logarithm of how much likelier an answer is than UNSAID (Recall.choice)."""
        at_end = states(self.model, self.tables, [self.message(passages, question)], self.maps)[-1:]  # (1, d)
        return float(said_odds(self.model.lm_head(at_end).float(), self.unsaid)[0])

    def _places(self, body: Sequence[int], value: str) -> list[int]:
        body = list(body)
        for text in (" " + value, value, value[:1].upper() + value[1:], " " + value[:1].upper() + value[1:]):
            want = list(self.words.plain(text))
            for i in range(len(body) - len(want) + 1):
                if body[i : i + len(want)] == want:
                    return list(range(i, i + len(want)))
        return []


def said_odds(logits: Tensor, unsaid: int) -> Tensor:
    """The logarithm of how much likelier an answer begins with anything but `unsaid`: logits (n, v) of first tokens to (n,)."""
    others = logits.clone()
    others[:, unsaid] = -torch.inf
    return others.logsumexp(-1) - logits[:, unsaid]
