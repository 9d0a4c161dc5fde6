"""Learning to read: which words of a message answer a question, or that none do. A BERT that begins as a recall's encoder, with two logits a piece, or as its
reader, to go on with it.

As extractive readers are trained (Devlin et al. 2018, arXiv 1810.04805, sections 4.2 and 4.3): question and message are one text of two segments, a first and a
last piece of the answer are chosen, the text's first piece where nothing answers. Embeddings of words stand still: they are the encoder's.

Axes: b samples, t pieces of the longest, d width, h heads, e width of a head.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lm2 import LM2
from ..recall.bert import Bert, shapes
from ..recall.encoder import Encoder
from ..recall.reader import PIECES, Reader, Text, Use, pieces
from .plan import Stage
from .run import Terms

PARTS = 3  # a step's samples are computed in so many parts, each of texts about as long
DROPOUT = 0.1
Draw = Callable[[random.Random], tuple[str, str, str, str]]  # question, message, what it replies to, and its words that answer, nothing where none do


class Sample(NamedTuple):
    """text: what is read; first, last: pieces of the answer, 0 and 0 where nothing answers."""

    text: Text
    first: int
    last: int


class ReaderMaps(nn.Module):
    """The parameters of a reader, float32, which begin as an encoder's, or as those of a reader that it has."""

    def __init__(self, encoder: Encoder, seed: int, reader: Reader | None = None):
        super().__init__()
        self.sizes = encoder.sizes
        names = [name for name in shapes(encoder.sizes, words=False) if not name.endswith(".step")]
        begun: Bert = encoder if reader is None else reader
        wide = {name: torch.from_numpy(begun.wide(name).astype(np.float32)) for name in names}
        self.own = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(x.clone()) for name, x in wide.items()})
        self.words: Tensor
        self.register_buffer("words", torch.from_numpy(encoder.wide("words").astype(np.float32)), persistent=False)  # (v, d)
        generator = torch.Generator().manual_seed(seed)
        self.other = nn.Parameter(wide["segment"].clone())  # (d,) of the message; the question has the encoder's own
        self.ends = nn.Parameter(torch.randn(2, encoder.sizes.width, generator=generator) * 0.02)  # (2, d)
        self.ends_bias = nn.Parameter(torch.zeros(2))
        if reader is not None:
            for own, name in ((self.other, "segment.message"), (self.ends, "ends"), (self.ends_bias, "ends.bias")):
                own.data.copy_(torch.from_numpy(reader.own[name]))

    def get(self, name: str) -> Tensor:
        found: Tensor = self.own[name.replace(".", "/")]
        return found

    def logits(self, ids: Tensor, segments: Tensor, there: Tensor) -> Tensor:
        """(b, t, 2) of ids, segments (0 question, 1 message) and there (False: padding), (b, t) each."""
        s, b, t = self.sizes, *ids.shape
        segment = torch.stack((self.get("segment"), self.other))[segments]  # (b, t, d)
        x = self._norm("norm", self.words[ids] + self.get("places")[:t] + segment)  # (b, t, d)
        x = F.dropout(x, DROPOUT, self.training)
        mask = there[:, None, None, :]  # (b, 1, 1, t)
        for i in range(s.layers):
            q, k, v = self._product(f"{i}.qkv", x).view(b, t, 3, s.heads, -1).permute(2, 0, 3, 1, 4)  # (b, h, t, e) each
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, -1)  # (b, t, d)
            x = self._norm(f"{i}.attention_norm", x + F.dropout(self._product(f"{i}.out", seen), DROPOUT, self.training))
            x = self._norm(f"{i}.mlp_norm", x + F.dropout(self._product(f"{i}.down", F.gelu(self._product(f"{i}.up", x))), DROPOUT, self.training))
        return x @ self.ends.T + self.ends_bias

    def _product(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.get(name), self.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(name), self.get(f"{name}.bias"), 1e-12)

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """As float32 arrays under the names of models/recall/reader.py."""
        own = {name.replace("/", "."): x.detach().cpu().numpy() for name, x in self.own.items()}
        return {**own, "segment.message": self.other.detach().cpu().numpy(), "ends": self.ends.detach().cpu().numpy(), "ends.bias": self.ends_bias.detach().cpu().numpy()}


class ReadTask:
    """draw: a question, a message, what it replies to, and what of it answers. model: stands still, and is not looked at. reader: of this encoder, to go on with."""

    def __init__(self, model: LM2, encoder: Encoder, draw: Draw, seed: int, reader: Reader | None = None):
        self.model, self.encoder, self._draw = model.requires_grad_(False), encoder, draw
        self.maps = ReaderMaps(encoder, seed, reader).to(model.device)
        self.aids: nn.Module | None = self.maps

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def sample(self, rng: random.Random) -> Sample:
        """The next one whose answer stands in the message in its own words."""
        while True:
            question, message, before, value = self._draw(rng)
            lead = f"{before} " if before else ""
            message = lead + message
            text = pieces(self.encoder.tokenizer, question, message, min(2 * PIECES, self.encoder.sizes.positions))
            if not value:
                return Sample(text, 0, 0)
            at = message.lower().find(value.lower(), len(lead))
            if at < 0:
                continue
            inside = [i for i, (a, b) in enumerate(text.offsets) if i >= text.begin and b > at and a < at + len(value)]
            if inside and text.offsets[inside[-1]][1] >= at + len(value):
                return Sample(text, inside[0], inside[-1])

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """Cross-entropy of first and last pieces, each among the pieces of the message and none."""
        drawn = sorted((self.sample(rng) for _ in range(stage.batch)), key=lambda s: len(s.text.ids))
        size = -(-len(drawn) // PARTS)
        losses, right, told = list[Tensor](), list[bool](), list[bool]()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.randrange(1 << 31))
            self.maps.train()
            for part in (drawn[i : i + size] for i in range(0, len(drawn), size)):
                logits = self.logits([s.text for s in part])  # (b, t, 2)
                wanted = torch.tensor([[s.first, s.last] for s in part], device=logits.device)  # (b, 2)
                losses.append(F.cross_entropy(logits, wanted, reduction="sum"))
                right += (logits.argmax(1) == wanted).all(1).tolist()
                told += [s.first > 0 for s in part]
        hits = {"told": [r for r, t in zip(right, told, strict=True) if t], "none": [r for r, t in zip(right, told, strict=True) if not t]}
        loss = torch.stack(losses).sum() / (2 * len(drawn))
        return Terms(loss, loss.new_zeros(()), {}, hits, sum(len(s.text.ids) for s in drawn))

    def logits(self, texts: Sequence[Text]) -> Tensor:
        """(b, t, 2), -inf where no answer can begin or end."""
        longest = max(len(t.ids) for t in texts)
        ids, segments = torch.zeros(len(texts), longest, dtype=torch.long), torch.zeros(len(texts), longest, dtype=torch.long)
        there, able = torch.zeros(len(texts), longest, dtype=torch.bool), torch.zeros(len(texts), longest, dtype=torch.bool)
        for n, text in enumerate(texts):
            k = len(text.ids)
            ids[n, :k], there[n, :k] = torch.tensor(text.ids), True
            segments[n, text.begin : k], able[n, 0], able[n, text.begin : k - 1] = 1, True, True
        ids, segments, there, able = (x.to(self.maps.words.device) for x in (ids, segments, there, able))
        found: Tensor = self.maps.logits(ids, segments, there).masked_fill(~able[..., None], -torch.inf)
        return found

    def reader(self, use: Use, training: Mapping[str, Any]) -> Reader:
        """The reader that these make, its matrices in 8 bits."""
        return Reader.rounded(self.encoder, self.maps.arrays(), use, training)
