"""The baselines in PyTorch: a Llama that reads text in segments, and for RMT memory tokens that are read before a segment and written after it.

RMT as in Bulatov et al. (arXiv 2207.06881), its form for decoders: a segment is [memory, text, memory]; the first memory is read, what the last layer makes
of the last one is the next segment's memory, and the loss is differentiated through all of them. Without memory tokens the same code is a Llama in its window.
Axes: b streams, m memory tokens, t positions of text, q questions after a segment, s positions of a question, n positions of a segment in all, d hidden.
"""

import torch
from torch import Tensor, nn

from ..lm2 import LM2, Block
from .config import BaselineConfig

READ, TEXT, WRITE = -3, -2, -1  # parts of a segment; questions are numbered from 0


class Baseline(LM2):
    """A Llama (LM2 without memory layers) with memory tokens (m, d), or none of them."""

    def __init__(self, config: BaselineConfig):
        super().__init__(config.llama)
        self.baseline = config
        self.memory_tokens = nn.Parameter(torch.zeros(config.tokens, config.llama.hidden_size)) if config.tokens else None  # (m, d)

    def begin(self, batch: int) -> Tensor:
        """The memory before the first segment (b, m, d)."""
        if self.memory_tokens is None:
            return self.embed_tokens.weight.new_zeros(batch, 0, self.config.hidden_size)  # (b, 0, d)
        return self.memory_tokens.expand(batch, -1, -1)  # (b, m, d)

    def segment(self, memory: Tensor, text: Tensor, lengths: Tensor, asked: Tensor | None = None, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Read one segment: text (b, t) ids of which lengths (b,) count, behind memory (b, m, d). Returns the memory after it, (b, m, d), as it was
        where there is no text, and the final normed states (b, q, s, d) of questions asked (b, q, s), None without.

        A question stands behind the first seen (b, q) tokens of the text, and sees the memory, those, and itself; nothing sees it.
        """
        b, t = text.shape
        m = memory.shape[1]
        q, s = asked.shape[1:] if asked is not None else (0, 0)
        parts = [memory, self.embed_tokens(text), memory]
        if asked is not None:
            parts.append(self.embed_tokens(asked).flatten(1, 2))
        x = torch.cat(parts, dim=1)  # (b, n, d)
        device = text.device
        none = lengths.new_zeros(b, 0)
        about = none if seen is None else seen.repeat_interleave(s, dim=1)  # (b, q s)
        count = torch.arange(m, device=device), torch.arange(t, device=device), torch.arange(s, device=device).repeat(q)
        places = torch.cat(
            (count[0].expand(b, -1), m + count[1].expand(b, -1), m + lengths[:, None] + count[0], m + about + count[2]), dim=1
        )  # (b, n)
        part = torch.cat([torch.full((k,), p, device=device) for k, p in ((m, READ), (t, TEXT), (m, WRITE))] + [torch.arange(q, device=device).repeat_interleave(s)])  # (n,)
        sees = torch.cat((none.new_zeros(b, m), (count[1] + 1).expand(b, -1), lengths[:, None].expand(-1, m), about), dim=1)  # (b, n)
        x = self._through(x, places, _visible(part, sees, places, m))
        after = torch.where((lengths > 0)[:, None, None], x[:, m + t : m + t + m], memory)  # (b, m, d)
        return after, x[:, m + t + m :].unflatten(1, (q, s)) if asked is not None else None

    def _through(self, x: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """All layers and the last norm over x (b, n, d), at places (b, n), with visible (b, 1, n, n)."""
        cos, sin = (table[places][:, None] for table in self.tables(self.config.max_position_embeddings))  # (b, 1, n, e)
        for block in self.blocks:
            x = _layer(block, x, cos, sin, visible)
        return self.norm(x).to(x.dtype)  # (b, n, d)


def _layer(block: Block, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor) -> Tensor:
    a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, lambda k, v: (k, v), mask=visible)  # (b, n, d)
    return block.finish(x, a)


def _visible(part: Tensor, sees: Tensor, places: Tensor, m: int) -> Tensor:
    """Which positions see which, bool (b, 1, n, n): the memory that is read (itself causally), the text as far as `sees` (b, n), and of its own part what
    is not later. part (n,), places (b, n)."""
    key, query = part[None, None, :], part[None, :, None]
    read = (key == READ) & (query != READ)
    order = torch.where(part == TEXT, places - m, 0)[:, None, :]  # (b, 1, n)
    text = (key == TEXT) & (order < sees[:, :, None])
    own = (key == query) & (key != TEXT) & (places[:, None, :] <= places[:, :, None])
    return (read | text | own)[:, None]  # (b, 1, n, n)

