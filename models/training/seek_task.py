"""Learning which earlier message a new one asks for: the parameters of a recall's finder, and one contrastive step.

Questions stand against the messages that tell their answers and many that do not; messages that ask for nothing told, and questions whose answer is not
there, belong to `nothing`. What the backbone's embeddings and lower layers make of a token alone stands still. What is learned becomes the arrays of models/recall/finder.py, which says what is computed.

Axes: v vocabulary, d features of a token, f width, q tokens of all that asks, a messages that ask, n tokens of all passages, p passages.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lm2 import LM2
from ..recall.finder import TAPS, WORTH, Finder, as_read
from .frozen import alone
from .plan import Stage
from .run import Terms
from .tellings import Tellings

WIDTH, TOKENS = 96, 64
DEPTHS = (1 / 6, 1 / 3)  # of the layers, after which a token is looked at
SIZE = 0.13  # of features, so that maps begin at the size that their rate is meant for
MESSAGES, OTHERS, ORDINARY, IDLE = 64, 48, 48, 40  # of a step: that are asked for; more that tell; ordinary ones; messages that ask for nothing told
ABSENT, ASKED_AGAIN = 0.08, 0.2  # questions whose answer is not there; passages that are questions themselves, a share of MESSAGES
SAME = 0.7  # of questions of a conversation: with another message of it among the passages
Encode = Callable[[str], Sequence[int]]
Ids = tuple[int, ...]


class FinderMaps(nn.Module):
    """What a finder is made of. features (v, d) of the vocabulary (frozen.alone), not trained. Maps begin as their main directions, equally wide."""

    def __init__(self, features: Tensor, seed: int, width: int = WIDTH):
        super().__init__()
        self.features = (features - features.mean(0)).detach() * SIZE  # (v, d)
        v, d = features.shape
        generator = torch.Generator().manual_seed(seed)
        some = self.features[torch.randperm(v, generator=generator)[:8000]]
        main = torch.linalg.svd(some, full_matrices=False)[2][:width]  # (f, d)
        begun = (main / (self.features @ main.T).std(0)[:, None]).T.contiguous()  # (d, f)
        self.asking, self.telling = nn.Parameter(begun.clone()), nn.Parameter(begun.clone())
        self.weight_asking, self.weight_telling = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.prior, self.nothing = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
        self.rare, self.prior_of, self.nothing_of = (nn.Parameter(torch.zeros(v)) for _ in range(3))
        self.bias, self.floor, self.sharpness = (nn.Parameter(torch.tensor(x)) for x in (0.0, 0.3, 3.0))
        self.mix = nn.Parameter(torch.zeros(TAPS, len(main)))  # narrower where there are fewer features than that
        self.mix.data[1] = 1.0

    def scores(self, asking: Sequence[Ids], passages: Sequence[Ids]) -> Tensor:
        """Of each of `asking` for each of `passages` and, last, for nothing told: (a, p + 1), sharpness included."""
        own, whose, _ = self._vectors(asking, self.asking)  # (q, f), (q,)
        theirs, where, told = self._vectors(passages, self.telling)  # (n, f), (n,)
        ids = torch.tensor([i for message in asking for i in message], device=own.device)  # (q,)
        match = own @ theirs.T + WORTH * self._weight(told, self.weight_telling).log()  # (q, n)
        best = match.new_full((len(ids), len(passages)), -1e4).scatter_reduce(1, where.expand(len(ids), -1), match, "amax", include_self=False)  # (q, p)
        weight = self._weight(ids, self.weight_asking)  # (q,)
        sums = best.new_zeros(len(asking), len(passages)).index_add(0, whose, weight[:, None] * best)  # (a, p)
        total = weight.new_zeros(len(asking)).index_add(0, whose, weight)  # (a,)
        prior = _mean(self.features[told] @ self.prior + self.prior_of[told], where, len(passages))  # (p,)
        nothing = _mean(self.features[ids] @ self.nothing + self.nothing_of[ids], whose, len(asking)) + self.floor  # (a,)
        return torch.cat((sums / total[:, None] + prior, nothing[:, None]), dim=1) * self.sharpness.exp()

    def _weight(self, ids: Tensor, by: Tensor) -> Tensor:
        return F.softplus(3 * self.features[ids] @ by + self.rare[ids] + self.bias)

    def _vectors(self, texts: Sequence[Ids], by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (n, f) of all tokens of texts, which text each is of, and their ids."""
        flat = torch.tensor([i for text in texts for i in text], device=by.device)  # (n,)
        of = torch.repeat_interleave(torch.arange(len(texts), device=by.device), torch.tensor([len(t) for t in texts], device=by.device))  # (n,)
        own = self.features[flat] @ by  # (n, f)
        same = (of[1:] == of[:-1])[:, None]
        before, after = F.pad(own[:-1] * same, (0, 0, 1, 0)), F.pad(own[1:] * same, (0, 0, 0, 1))
        return F.normalize(before * self.mix[0] + own * self.mix[1] + after * self.mix[2], dim=-1), of, flat

    @torch.no_grad()
    def finder(self) -> Finder:
        """The finder that these make."""
        x = self.features

        def eighth(table: Tensor) -> tuple[np.ndarray, np.ndarray]:
            step = (table.abs().amax(1) / 127).clamp_min(1e-8).half()  # (v,)
            return (table / step.float()[:, None]).round().clamp(-127, 127).to(torch.int8).cpu().numpy(), step.cpu().numpy()

        def half(values: Tensor) -> np.ndarray:
            return values.half().cpu().numpy()

        everything = torch.arange(len(x), device=x.device)
        (asking, asking_step), (telling, telling_step) = eighth(x @ self.asking), eighth(x @ self.telling)
        return Finder(
            asking, telling, asking_step, telling_step, half(self._weight(everything, self.weight_asking).clamp_min(1e-4)),
            half(WORTH * self._weight(everything, self.weight_telling).log()), half(x @ self.prior + self.prior_of),
            half(x @ self.nothing + self.nothing_of + self.floor), self.mix.cpu().numpy(), float(self.sharpness.exp()),
        )  # fmt: skip


def after(model: LM2) -> tuple[int, ...]:
    """After which layers of a model a token is looked at."""
    return tuple(sorted({max(1, round(depth * model.config.num_hidden_layers)) for depth in DEPTHS}))


def _mean(values: Tensor, of: Tensor, count: int) -> Tensor:
    """The mean of values (n,) by `of` (n,): (count,)."""
    zeros = values.new_zeros(count)
    return zeros.index_add(0, of, values) / zeros.index_add(0, of, torch.ones_like(values))


class SeekTask:
    """encode: plain text to ids, as the finder is given them. first: the token that every text of the model begins with."""

    def __init__(self, model: LM2, tellings: Tellings, encode: Encode, first: int, seed: int):
        self.model, self.tellings = model.requires_grad_(False), tellings
        self.maps = FinderMaps(alone(model, first, after(model)), seed).to(model.device)
        self.aids: nn.Module | None = self.maps
        self._encode, self._known = encode, dict[str, Ids]()

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def ids(self, text: str) -> Ids:
        """A text as the finder reads it."""
        return tuple(self._encode(as_read(text)))[:TOKENS]

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Cross-entropy of what is asked for, among all passages and nothing told."""
        draw, messages, asking, beside = self.tellings.draw, list[str](), list[str](), list[str]()
        while len(messages) < MESSAGES:
            telling = draw(rng)
            asked = rng.choice(telling.asked)
            messages.append(telling.said.whole)
            asking.append(asked.question)
            if telling.others and rng.random() < SAME:
                beside.append(rng.choice(telling.others).whole)
            if rng.random() < ASKED_AGAIN:
                beside.append(rng.choice((draw(rng), telling)).asked[0].question)
        there = [i for i in range(MESSAGES) if rng.random() >= ABSENT]
        place = {i: k for k, i in enumerate(there)}
        passages = [messages[i] for i in there] + [draw(rng).said.whole for _ in range(OTHERS)]
        passages += [self.tellings.plain(rng) for _ in range(ORDINARY)] + beside
        idle = [self.tellings.idle(rng) for _ in range(IDLE)]
        ask, told = ([self.ids(text) for text in texts] for texts in (asking + idle, passages))
        scores = self.maps.scores(ask, told)  # (a, p + 1)
        wanted = torch.tensor([place.get(i, len(passages)) for i in range(MESSAGES)] + [len(passages)] * IDLE, device=scores.device)
        loss = F.cross_entropy(scores, wanted)
        right = (scores.argmax(-1) == wanted).tolist()
        hits = {"found": [r for i, r in enumerate(right[:MESSAGES]) if i in place], "idle": right[MESSAGES:]}
        return Terms(loss, loss.new_zeros(()), {}, hits, sum(map(len, ask + told)))
