"""Learning to answer from messages that were brought back: the opening of a recall, keys and values of every layer, and one step.

The backbone stands still (prefix tuning: Li and Liang 2021, arXiv 2101.00190). Every sample is one window: the opening, messages of which one tells what is
asked for or none does, the question, and the answer, whose tokens are to be said. Where none does, that is the backbone's own answer.

Axes: L layers, h query heads, k key/value heads, p positions of the opening, e head width, n tokens of all samples, v vocabulary.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..llama import attend, rotate, table
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
POOL, AMONG = 1500, (5, 20, 60, 150)  # messages to choose from; how many of them one question chooses among
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
        self._states([ids], None, kept)
        return torch.stack([k[0] for k, _ in kept]), torch.stack([v[0] for _, v in kept])

    def _states(self, texts: Sequence[Sequence[int]], maps: OpeningMaps | None, kept: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The backbone's last states (n, d) of the n tokens of all texts, each text in a window of its own after the opening. Nothing is padded. Raises TrainError for
        a text that takes more than the model's positions."""
        device, p = self.model.device, 0 if maps is None else maps.keys.shape[2]
        if (longest := p + max(map(len, texts))) > (most := len(self.tables[0])):
            raise TrainError(f"a question with its passages takes {longest} positions, of which {p} are the opening's; the model has {most}: take another")
        ends = np.cumsum([len(text) for text in texts])
        spans = list(zip(ends - [len(text) for text in texts], ends, strict=True))
        places = torch.tensor([p + i for text in texts for i in range(len(text))], device=device)  # (n,)
        cos, sin = (rows[places] for rows in self.tables)  # (n, e) each
        x = self.model.embed_tokens(torch.tensor([[i for text in texts for i in text]], device=device))  # (1, n, d)
        for i, block in enumerate(self.model.blocks):
            attention = block.self_attn
            heads, groups, width = attention.heads, attention.groups, attention.width
            qkv = attention.project(block.input_layernorm(x).to(x.dtype)).view(1, -1, heads + 2 * groups, width).transpose(1, 2)  # (1, h + 2k, n, e)
            turned, v = qkv.split((heads + groups, groups), dim=1)
            if attention.turns is not None:
                turned = rotate(turned, *(table(rows, attention.turns, width) for rows in (cos, sin)))
            q, k = turned.split((heads, groups), dim=1)
            if kept is not None:
                kept.append((k, v))
            keys, values = (k[:, :, :0], v[:, :, :0]) if maps is None else maps.layer(i)  # (1, k, p, e) each
            seen = [attend(q[:, :, a:b], torch.cat((keys, k[:, :, a:b]), 2), torch.cat((values, v[:, :, a:b]), 2)) for a, b in spans]
            x = block.finish(x, attention.output(torch.cat(seen, dim=2).transpose(1, 2).flatten(2)))  # (1, n, d)
        out: Tensor = self.model.norm(x).to(x.dtype)[0]
        return out  # (n, d)

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
        said, ids = [self.pool[i] for i in among], [self._pool_ids[i] for i in among]
        at = sorted(rng.randint(0, len(said)) for _ in texts)
        for n, (place, text) in enumerate(zip(at, texts, strict=True)):
            said.insert(place + n, text)
            ids.insert(place + n, tuple(self._ids(text)))
        scores, _ = self.recall.finder.scores(tuple(self._ids(question)), ids)
        chosen = self.recall.choice(scores, -np.inf)
        if texts and (told := at[-1] + len(texts) - 1) not in chosen:
            chosen = [told, *chosen[1:]]
        return Sample([said[i] for i in chosen], question, answer, value)

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Cross-entropy of the answers' tokens, a value's counted VALUE times."""
        return self.loss([self.sample(rng) for _ in range(stage.batch)])

    def loss(self, samples: Sequence[Sample]) -> Terms:
        """See `step`. hits: answers whose value is right at every token."""
        asked = [self.message(s.passages, s.question) for s in samples]
        said = [[*self.words.plain(s.answer), *self.words.closing[:1]] for s in samples]
        places = [self._places(body, s.value) if s.value else [] for body, s in zip(said, samples, strict=True)]
        device = self.model.device
        texts = [[*a, *b][:-1] for a, b in zip(asked, said, strict=True)]
        rows, at, wanted, weights, value = list[int](), list[int](), list[int](), list[float](), list[bool]()
        before = 0
        for r, (a, b) in enumerate(zip(asked, said, strict=True)):
            for n, token in enumerate(b):
                rows.append(r)
                at.append(before + len(a) - 1 + n)
                wanted.append(token)
                weights.append(OWN if not samples[r].value else VALUE if n in places[r] else 1.0)
                value.append(n in places[r])
            before += len(texts[r])
        states = self._states(texts, self.maps)[at]  # (answers' tokens, d)
        logits = self.model.lm_head(states).float()  # (answers' tokens, v)
        goal, weight = torch.tensor(wanted, device=device), torch.tensor(weights, device=device)
        each = F.cross_entropy(logits, goal, reduction="none")
        right = (logits.argmax(-1) == goal).tolist()
        told = [r for r in range(len(samples)) if places[r]]
        hits = [all(ok for ok, row, is_value in zip(right, rows, value, strict=True) if row == r and is_value) for r in told]
        loss = (each * weight).sum() / weight.sum()
        return Terms(loss, loss.new_zeros(()), {}, {"told": hits}, before)

    def _places(self, body: Sequence[int], value: str) -> list[int]:
        body = list(body)
        for text in (" " + value, value, value[:1].upper() + value[1:], " " + value[:1].upper() + value[1:]):
            want = list(self.words.plain(text))
            for i in range(len(body) - len(want) + 1):
                if body[i : i + len(want)] == want:
                    return list(range(i, i + len(want)))
        return []
