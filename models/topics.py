"""Topics: what was talked of around a row, and what is talked of now. A bank of its own beside the memories', and a term that all of them look by.

A token's features are what the value caches of a few low layers hold of it, side by side: what words there were, hardly what they are used for, and
already kept for every position of the window. A row of the topics' bank is made of its token's features, as far as the first memory's input gate lets
that token in: talk that tells nothing fades what was told by little. What is near a row is the mean of the rows around it in the ring; what is near now is the mean of the last tokens' features. Their product is added to every memory's attention logits.
Knows one call; caches and folds are others' business. Axes: b batch, t positions of a call, s positions so far, n rows, p places, d hidden, f features,
l memories, r positions `back`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LM2Config


class Topics(nn.Module):
    """row = g (W_write f + b_write) + sigmoid(keep) * old row, g the mean of the first memory's input gate; logits of memory j get gain_j (W_query mean of f + b_query) . (mean of rows) / sqrt(d)."""

    def __init__(self, config: LM2Config):
        super().__init__()
        m, d = config.memory, config.hidden_size
        features = len(m.topics) * config.num_key_value_heads * config.head_dim
        self.layers, self.back, self.near = m.topics, m.topic_back, m.topic_around
        self.write = nn.Linear(features, d)
        self.query = nn.Linear(features, d)
        self.keep = nn.Parameter(torch.zeros(d))  # (d,)
        self.gain = nn.Parameter(torch.ones(len(m.layers)))  # (l,)

    @staticmethod
    def features(values: Sequence[Tensor]) -> Tensor:
        """Features (b, s, f) of positions whose values in the topics' layers are (b, k, s, e) each."""
        return torch.cat([v.transpose(1, 2).flatten(2) for v in values], dim=-1)  # (b, s, f)

    def lately(self, features: Tensor, t: int) -> Tensor:
        """Means (b, t, f) over the last `back` positions, of the last t of features' s positions (b, s, f), their own included."""
        s = features.shape[1]
        begin = max(0, s - t - self.back + 1)
        near = features[:, begin:]  # (b, s', f)
        at = torch.arange(s - t, s, device=near.device)[:, None] - torch.arange(begin, s, device=near.device)  # (t, s')
        band = ((at >= 0) & (at < self.back)).to(near.dtype)  # (t, s')
        return (band / band.sum(-1, keepdim=True)) @ near  # (b, t, f)

    def one(self, values: Sequence[Tensor], position: Tensor) -> tuple[Tensor, Tensor]:
        """Of one position of each sequence (b,) int64 in values (b, k, W, e) of each layer: its features (b, f), and their mean `lately` (b, f)."""
        at = position[:, None] - torch.arange(self.back, device=position.device)  # (b, r)
        sequences = torch.arange(len(position), device=position.device)[:, None]  # (b, 1)
        near = torch.cat([v.transpose(1, 2)[sequences, at.clamp(min=0)].flatten(2) for v in values], dim=-1)  # (b, r, f)
        band = (at >= 0).to(near.dtype)  # (b, r)
        return near[:, 0], ((band / band.sum(-1, keepdim=True))[:, None] @ near)[:, 0]

    def rows(self, features: Tensor, told: Tensor, old: Tensor) -> Tensor:
        """New rows (.., d) of tokens with these features (.., f), written as far as `told` (.., 1) says, in the dtype of old (.., d)."""
        return told.to(old.dtype) * self.write(features.to(old.dtype)) + torch.sigmoid(self.keep) * old  # (.., d)

    def around(self, bank: Tensor, places: Tensor | None = None) -> Tensor:
        """What is near each row of a bank (b, n, d), or near the rows `places` (p,): means over the ring, (b, n or p, d)."""
        n, width = bank.shape[1], 2 * self.near + 1
        if places is None:
            ring = torch.cat((bank[:, n - self.near :], bank, bank[:, : self.near]), dim=1)  # (b, n + 2 near, d)
            return F.avg_pool1d(ring.transpose(1, 2), width, 1).transpose(1, 2)  # (b, n, d)
        span = torch.arange(-self.near, self.near + 1, device=bank.device)  # (w,)
        return bank[:, (places[:, None] + span) % n].mean(2)  # (b, p, d)

    def looks(self, lately: Tensor, around: Tensor) -> Tensor:
        """How much of what was talked of lately (b, t, f) is near each row, by what `around` (b, n, d) says: logits (b, t, n) before the gains."""
        q = self.query(lately.to(around.dtype)) * around.shape[-1] ** -0.5  # (b, t, d)
        return q @ around.transpose(1, 2)  # (b, t, n)
