"""Loud channels of the residual stream, moved to places of their own in a model of 8-bit blocks.

MatMulNBits rounds a block of 32 inputs to steps of the largest's 127th. A few channels of a trained model are 10 to 100 times louder than the others, and the
31 that share their block are rounded away with them (docs/decisions.md). So the stream gets one block more: a loud channel's own place stays zero, and it
runs in the new block, whose other places are zero too and are rounded to zero exactly. Matrices that read the stream get its column there as well (the old
one meets a zero, and keeping it leaves the block's numbers on their grid), matrices that write it have its row there, and norms count the
places as they were. In exact arithmetic the model is the same. Knows tensors by name.

Axes: t positions, k blocks of 32, d hidden, w = d + 32 places of the stream, o rows and i columns of a matrix, c loud channels.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from ..models.config import LM2Config
from .backbone import normed_inputs
from .options import BLOCK, Options
from .weights import Weights, cut

WORTH = 0.8  # of the expected rounding error: a model whose error would not fall below that share is left as it is
READERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "memory.q_proj",
    "memory.input_gate",
    "memory.open_gate",
    "memory.content",
)
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight", "memory.norm.weight", "model.norm.weight")


def rounding(x: np.ndarray, loud: np.ndarray) -> float:
    """Expected error of x (t, d) in blocks with channels `loud` (c,) in one of their own, relative to x; the first position counts as much as
    all others: every later one attends to it."""
    quiet = x.copy()
    quiet[:, loud] = 0
    largest = np.abs(quiet).reshape(len(x), -1, BLOCK).max(-1)  # (t, k)
    error = BLOCK * np.square(largest).sum(-1)  # (t,)
    if loud.size:
        error += loud.size * np.square(np.abs(x[:, loud]).max(-1))
    share = error / np.maximum(np.square(x).sum(-1), 1e-30)
    return float(share[0] + share[1:].mean() if len(x) > 1 else share[0])


def find(inputs: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The channels (c,) whose move lowers the rounding error of `inputs`, each (t, d), most: the loudest, at most 32; none when it is not worth it.

    And their loudness (c,): the share of an input's power, summed over inputs, the first position weighing as in `rounding`.
    """
    kept = list(inputs)
    loudness = np.zeros(kept[0].shape[-1])
    for x in kept:
        share = np.square(x) / np.maximum(np.square(x).sum(-1, keepdims=True), 1e-30)
        loudness += share[0] + share[1:].mean(0) if len(x) > 1 else share[0]
    ranked = np.argsort(-loudness, kind="stable")
    errors = [sum(rounding(x, ranked[:count]) for x in kept) for count in range(min(BLOCK, len(ranked) - 1) + 1)]
    best = int(np.argmin(errors))
    loud = ranked[: best if errors[best] < WORTH * errors[0] else 0]
    return loud, loudness[loud]


class Widened(Weights):
    """A folder's weights with channels `loud` in a block of their own. `order` (d,): the place of every channel, for those who leave the stream."""

    def __init__(self, weights: Weights, loud: np.ndarray, shares: np.ndarray, width: int):
        super().__init__(weights.folder, weights.file, weights.progress)
        self.loud, self.shares, self.d, self.width = loud, shares, width, width + BLOCK
        self.order = np.arange(width)
        self.order[loud] = width + np.arange(loud.size)

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        matrix = name.removesuffix(".weight").removesuffix(".bias")
        if matrix.endswith(WRITERS):
            return self.placed(array)
        if name.endswith(NORMS):
            return self.placed(array) * np.float32(np.sqrt(self.d / self.width))
        if name.endswith(".weight") and reads_stream(matrix):
            return np.concatenate([array, self.apart(array.T).T], 1)  # (o, w)
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        shape, matrix = super().shape(name), name.removesuffix(".weight")
        if matrix.endswith(WRITERS):
            return (shape[0] + BLOCK, *shape[1:])
        return (*shape[:-1], shape[-1] + BLOCK) if reads_stream(matrix) else shape

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """Rows of a matrix that was made as a whole: where a row or a column goes depends on all of it."""
        array = self[name]
        for rows in cut(*array.shape):
            yield array[rows]

    def loudness(self, name: str) -> np.ndarray | None:
        return self.shares if reads_stream(name) else None

    def placed(self, array: np.ndarray) -> np.ndarray:
        """Rows or numbers (d, ...) in their places: (w, ...)."""
        quiet = array.copy()
        quiet[self.loud] = 0
        return np.concatenate([quiet, self.apart(array)])

    def apart(self, array: np.ndarray) -> np.ndarray:
        """The loud ones of (d, ...), then zeros: (32, ...)."""
        out = np.zeros((BLOCK, *array.shape[1:]), array.dtype)
        out[: self.loud.size] = array[self.loud]
        return out

    def sources(self) -> np.ndarray:
        """For each place (w,) the channel in it; d, where d channels are followed by zeros, for a place that is empty."""
        out = np.full(self.width, self.d)
        out[self.order] = np.arange(self.d)
        return out

    def quiet(self) -> np.ndarray:
        """1 where the stream may be other than zero, 0 in the places that loud channels left: (w,)."""
        mask = np.ones(self.width, np.float32)
        mask[self.loud] = 0
        return mask

    def eps(self, eps: float) -> float:
        """A norm's epsilon for the mean over w places."""
        return eps * self.d / self.width


def reads_stream(matrix: str) -> bool:
    """Whether the columns of a matrix (a name without `.weight`) are the residual stream's channels."""
    return matrix.endswith(READERS) or matrix in ("model.embed_tokens", "lm_head")


def widened(config: LM2Config, weights: Weights, options: Options) -> Weights:
    """`weights`, with the model's loud channels moved where rounding their blocks' inputs costs: 8-bit blocks of ONNX Runtime's operator, --plain."""
    if (
        options.precision != "int8"
        or options.portable
        or options.qlinear
        or config.backbone.norms != "before"  # what joins the stream is normed before, in its own order
        or config.hidden_size % BLOCK
        or (config.memory.banks and config.memory.cell != "gated")
    ):
        return weights
    loud, shares = find(normed_inputs(config, weights))
    return Widened(weights, loud, shares, config.hidden_size) if loud.size else weights
