"""Learning to answer from messages that were brought back: the opening of a recall, keys and values of every layer, and one step.

The backbone stands still (prefix tuning: Li and Liang 2021, arXiv 2101.00190). Every sample is one window: the opening, messages of which one tells what is
asked for or none does, the question, and the answer, whose tokens are to be said. Where none does, that is the backbone's own answer.

Axes: L layers, k key/value heads, p positions of the opening, e head width, b samples, t positions after the opening, v vocabulary.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lm2 import LM2
from ..opening import Opening
from ..recall import Recall
from ..tasks.natural.answers import mentions
from .plan import Stage, TrainError
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
POOL, AMONG, BESIDE = 1500, (20, 60, 150), (0, 1, 2, 3, 3, 3)  # messages to choose from; how many of them one question chooses among; how many it gets
IDLE, VALUE, OWN = 0.12, 3.0, 0.5  # share of samples that ask for nothing told; weights of a value's tokens and of the backbone's own
Encode = Callable[[str], Sequence[int]]


class Sample(NamedTuple):
    """passages in the order they were said; answer: to be said; value: what it has of what was told, or nothing."""

    passages: list[str]
    question: str
    answer: str
    value: str


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


class RetellTask:
    """recall: whose finder chooses what stands beside what is asked for; begin from its opening, or where `fresh`, from SHOWN. answers: messages that ask
    for nothing told, with the backbone's own answers; idle: only they are asked where nothing is told."""

    def __init__(self, model: LM2, tellings: Tellings, words: Words, ids: Encode, recall: Recall, answers: Mapping[str, str], seed: int, fresh: bool):
        self.model, self.tellings, self.words, self._ids = model.requires_grad_(False), tellings, words, ids
        self.recall, self.answers, self.questions = recall, answers, sorted(answers)
        self.tables = model.tables(min(2048, model.config.max_position_embeddings))
        keys, values = self.shown() if fresh else (torch.from_numpy(x.astype(np.float32)).to(model.device) for x in recall.opening)
        self.maps = OpeningMaps(keys, values)
        self.aids: nn.Module | None = self.maps
        rng = random.Random(f"{seed} pool")
        self.pool = [tellings.message(rng, 0.15) for _ in range(POOL)]
        self._pool_ids = [tuple(ids(text)) for text in self.pool]

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
        self._states(torch.tensor([ids], device=self.model.device), None, kept)
        return torch.stack([k[0] for k, _ in kept]), torch.stack([v[0] for _, v in kept])

    def _states(self, ids: Tensor, maps: OpeningMaps | None, kept: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The backbone's last states (b, t, d) of ids (b, t) after an opening. Raises TrainError where they are more than its positions."""
        b, t = ids.shape
        p = 0 if maps is None else maps.keys.shape[2]
        if p + t > (most := len(self.tables[0])):
            raise TrainError(f"a question with its passages takes {p + t} positions, of which {p} are the opening's; the model has {most}: take another")
        cos, sin = (table[p : p + t] for table in self.tables)
        x = self.model.embed_tokens(ids)  # (b, t, d)
        for i, block in enumerate(self.model.blocks):

            def cache(k: Tensor, v: Tensor, i: int = i) -> tuple[Tensor, Tensor]:
                if kept is not None:
                    kept.append((k, v))
                if maps is None:
                    return k, v
                keys, values = (part.expand(b, -1, -1, -1) for part in maps.layer(i))
                return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)  # (b, k, p + t, e) each

            x = block.finish(x, block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, cache))
        out: Tensor = self.model.norm(x).to(x.dtype)
        return out  # (b, t, d)

    def sample(self, rng: random.Random) -> Sample:
        """A question with what the finder would bring back for it, and what tells the answer whether it would or not."""
        idle = bool(self.questions) and rng.random() < IDLE
        if idle:
            question = rng.choice(self.questions)
            texts, answer, value = tuple[str, ...](), self.answers[question], ""
        else:
            telling = self.tellings.draw(rng)
            question, answer, value = rng.choice(telling.asked)
            texts = telling.texts
        among = rng.sample(range(len(self.pool)), rng.choice(AMONG))
        among = [i for i in among if self.pool[i] not in texts and not (value and mentions(self.pool[i], value))]
        scores, _ = self.recall.finder.scores(tuple(self._ids(question)), [self._pool_ids[i] for i in among])
        beside = max(rng.choice(BESIDE), int(idle))
        groups = [texts] * bool(texts) + [(self.pool[among[i]],) for i in np.argsort(-scores, kind="stable")[:beside]]
        rng.shuffle(groups)
        return Sample([text for group in groups for text in group], question, answer, value)

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Cross-entropy of the answers' tokens, a value's counted VALUE times."""
        return self.loss([self.sample(rng) for _ in range(stage.batch)])

    def loss(self, samples: Sequence[Sample]) -> Terms:
        """See `step`. hits: answers whose value is right at every token."""
        asked = [self.message(s.passages, s.question) for s in samples]
        said = [[*self.words.plain(s.answer), *self.words.closing[:1]] for s in samples]
        places = [self._places(body, s.value) if s.value else [] for body, s in zip(said, samples, strict=True)]
        t = max(len(a) + len(b) for a, b in zip(asked, said, strict=True)) - 1
        device = self.model.device
        ids = torch.zeros(len(samples), t, dtype=torch.long)  # (b, t)
        rows, at, wanted, weights, value = list[int](), list[int](), list[int](), list[float](), list[bool]()
        for r, (a, b) in enumerate(zip(asked, said, strict=True)):
            ids[r, : len(a) + len(b) - 1] = torch.tensor([*a, *b][:-1])
            for n, token in enumerate(b):
                rows.append(r)
                at.append(len(a) - 1 + n)
                wanted.append(token)
                weights.append(OWN if not samples[r].value else VALUE if n in places[r] else 1.0)
                value.append(n in places[r])
        states = self._states(ids.to(device), self.maps)[rows, at]  # (answers' tokens, d)
        logits = self.model.lm_head(states).float()  # (answers' tokens, v)
        goal, weight = torch.tensor(wanted, device=device), torch.tensor(weights, device=device)
        each = F.cross_entropy(logits, goal, reduction="none")
        right = (logits.argmax(-1) == goal).tolist()
        told = [r for r in range(len(samples)) if places[r]]
        hits = [all(ok for ok, row, is_value in zip(right, rows, value, strict=True) if row == r and is_value) for r in told]
        loss = (each * weight).sum() / weight.sum()
        return Terms(loss, loss.new_zeros(()), {}, {"told": hits}, ids.numel())

    def _places(self, body: Sequence[int], value: str) -> list[int]:
        body = list(body)
        for text in (" " + value, value, value[:1].upper() + value[1:], " " + value[:1].upper() + value[1:]):
            want = list(self.words.plain(text))
            for i in range(len(body) - len(want) + 1):
                if body[i : i + len(want)] == want:
                    return list(range(i, i + len(want)))
        return []
