"""One layer's memory as nodes, both cells (models/memory.py is the reference). Knows one layer of one call.

Axes: b batch, t positions of a call, s positions so far, T positions of a chunk, n rows, d hidden, h memory heads, e head width.
Norms, gates, content and rows are float32 in every precision, but for the output gate where QLinear multiplies; what only reads the bank is in the model's.
"""

from collections.abc import Callable

import numpy as np

from ..models.config import LM2Config
from .graph import CONTRIB, Graph
from .linear import Matrices
from .loud import NORMS, Widened
from .ops import DOMAIN, chunk_attention
from .topics import TopicNodes

# (graph, i, f, z, old) -> new rows: the custom node, or its arithmetic.
Update = Callable[[Graph, str, str, str, str], str]
LAYER_NORM_EPS = 1e-5


def plain_update(g: Graph, i: str, f: str, z: str, old: str) -> str:
    """sigmoid(i) tanh(z) + sigmoid(f) old, float32, as standard operators."""
    written = g.op("Mul", small_sigmoid(g, i), g.op("Tanh", z))
    return g.op("Add", written, g.op("Mul", small_sigmoid(g, f), old))


def small_sigmoid(g: Graph, x: str) -> str:
    """1 / (1 + exp(-x)) of float32: right in its last digits for gates that hardly open, where ONNX Runtime's Sigmoid is off by 1e-7 and 0 from -18 on."""
    return g.op("Reciprocal", g.op("Add", g.op("Exp", g.op("Neg", x)), g.constant(1.0, "float32")))


def wider(g: Graph, x: str, more: int) -> str:
    """x (b, t, d) and `more` zeros at each position."""
    return g.op("Pad", x, g.constant([0, 0, 0, 0, 0, more])) if more else x


class MemoryLayers:
    """The memory of any layer, added to a graph."""

    def __init__(self, config: LM2Config, matrices: Matrices, update: Update):
        self.config, self.matrices, self.update = config, matrices, update
        m = config.memory
        self.heads, self.width, self.d = m.heads, m.head_dim, config.hidden_size
        self.stream = matrices.weights if isinstance(matrices.weights, Widened) else None  # loud channels have places of their own
        self.topics = TopicNodes(config, matrices) if m.topics else None
        self.seen: dict[str, str] = {}  # names of models/trace.py -> values of the graph

    def narrow(self, g: Graph, x: str) -> str:
        """float32 to the dtype of activations."""
        return x if self.matrices.dtype == "float32" else g.cast(x, self.matrices.dtype)

    def widen(self, g: Graph, x: str) -> str:
        """Activations to float32."""
        return x if self.matrices.dtype == "float32" else g.cast(x, "float32")

    def keys_values(self, g: Graph, bank: str, layer: int, told: str = "") -> tuple[str, str]:
        """K and V (b, h, n, e) of a layer's bank (b, n, d), cell gated: once per chunk. With `keys: pair` one row more, the one before the first.
        told: the topics' rows of the same places, which `values: topics` reads."""
        p = f"model.layers.{layer}.memory."
        r = self.rms(g, bank, f"{p}bank_norm.weight")
        r = self.narrow(g, r)
        before = ""
        if self.pair:
            before = g.slice(r, g.constant([0]), g.constant([-1]), 1)  # (b, n, d)
            r = g.slice(r, g.constant([1]), g.constant([self.config.memory.slots + 1]), 1)  # (b, n, d)
        both = self.matrices.linear(g, r, f"{p}k_proj", f"{p}v_proj")  # (b, n, 2 h e)
        inner = self.heads * self.width
        k, v = g.split(both, [inner, inner])
        if self.pair:
            k = g.op("Add", k, self.matrices.linear(g, before, f"{p}k_before_proj"))
        if self.config.memory.values == "topics":
            words = self.narrow(g, self.rms(g, told, f"{p}topic_norm.weight"))
            if self.pair:
                words = g.slice(words, g.constant([1]), g.constant([self.config.memory.slots + 1]), 1)  # (b, n, d)
            v = g.op("Add", v, self.matrices.linear(g, words, f"{p}v_topic_proj"))
        k, v = (g.heads(x, self.heads, self.width) for x in (k, v))
        return (g.op("Mul", k, g.constant(self.width**-0.5, "float32")) if self.scaled_keys else k), v

    @property
    def pair(self) -> bool:
        """Whether a row's key is made of the row before it too."""
        return self.config.memory.keys == "pair"

    @property
    def scaled_keys(self) -> bool:
        """Whether keys are kept divided by sqrt(e). ONNX Runtime multiplies one row by a matrix in place only without a factor; with one it copies
        the keys first, at every token."""
        return not (self.matrices.options.portable or self.matrices.options.half)

    @property
    def width_of_two(self) -> int:
        """What a memory's row is made of: the normed token (as wide as the residual stream) and what it read."""
        return (self.d if self.stream is None else self.stream.width) + self.d

    @property
    def write_width(self) -> int:
        """What a position keeps in each bank until its row is rewritten: what a memory's row is made of, or the features of a topics' row if they are wider."""
        return max(self.width_of_two, self.topics.width if self.topics else 0)

    def gated(self, g: Graph, x: str, a: str, keys: str, values: str, layer: int, looks: str = "") -> tuple[str, tuple[str, str]]:
        """x (b, t, d) residual stream, a (b, t, d) attention output, K and V of the bank; looks (b, t, n) of topics, if there are some.

        Returns the attention output with what was read, and what `rewritten` makes the rows of: together (b, t, write_width).
        """
        p = f"model.layers.{layer}.memory."
        m = self.matrices
        u = self.rms(g, self.widen(g, x), f"{p}norm.weight")  # (b, t, d)
        q = m.linear(g, self.narrow(g, u), f"{p}q_proj")  # (b, t, h e)
        bias = self.topics.bias(g, looks, self.config.memory.layers.index(layer)) if self.topics else ""
        read = self.attend(g, q, keys, values, bias)  # (b, t, h e)
        if self.config.memory.output_projection:
            read = m.linear(g, read, f"{p}o_proj")  # (b, t, d)
        read = self.widen(g, read)
        opened = m.linear(g, read, f"{p}output_gate", wide=not m.options.qlinear)  # (b, t, d)
        if self.config.memory.opens == "both":
            opened = g.op("Add", opened, m.linear(g, u, f"{p}open_gate", wide=True))  # (b, t, d)
        add = g.op("Mul", g.op("Sigmoid", opened), read)
        if self.config.memory.scale:
            add = g.op("Mul", add, m.vector(g, f"{p}scale"))
        self.seen |= {f"layers.{layer}.memory.read": read, f"layers.{layer}.memory.add": add}
        return g.op("Add", a, self.joins(g, self.narrow(g, add))), (u, wider(g, read, self.write_width - self.width_of_two))

    def rewritten(self, g: Graph, writes: str, old: str, layer: int) -> tuple[str, str]:
        """The rows (b, p, d) of a chunk's p positions, cell gated: once per chunk, because nobody reads them before; and the logits (b, p, d) of
        their input gate. writes (b, p, write_width) of `gated`, old (b, p, d)."""
        p, d, m = f"model.layers.{layer}.memory.", self.d, self.matrices
        empty = self.write_width - self.width_of_two
        u, read, *_ = g.split(writes, [self.width_of_two - d, d, *([empty] if empty else [])])
        i, content = g.split(m.linear(g, u, f"{p}input_gate", f"{p}content", wide=True), [d, d])
        f = m.linear(g, read, f"{p}forget_gate", wide=True)
        both = self.config.memory.content == "both"
        return self.update(g, i, f, g.op("Add", read, content) if both else content, old), i

    def told(self, g: Graph, i: str) -> str:
        """How far the topics' rows of p positions are written: the mean (b, p, 1) of the first memory's input gate, of its logits i (b, p, d)."""
        return g.op("ReduceMean", small_sigmoid(g, i), g.constant([-1]), keepdims=1, name="told")

    def joins(self, g: Graph, add: str) -> str:
        """add (b, t, d) in the places of the residual stream."""
        if self.stream is None:
            return add
        return g.op("Gather", wider(g, add, self.stream.width - self.d), g.constant(self.stream.sources()), axis=2)

    def attend(self, g: Graph, q: str, keys: str, values: str, bias: str = "") -> str:
        """Every position of q (b, t, h e) sees all rows of keys and values (b, h, n, e), by their product and what `bias` (b, 1, t, n) adds to it if
        there is one: (b, t, h e)."""
        if self.matrices.options.qlinear:
            return self.own_attend(g, q, keys, values, bias)
        if not self.matrices.options.portable:
            scale = {"scale": 1.0} if self.scaled_keys else {}
            given = [q, keys, values, *(("", "", bias) if bias else ())]
            return g.op("MultiHeadAttention", *given, domain=CONTRIB, num_heads=self.heads, name="read", **scale)
        e = g.op("Attention", g.heads(q, self.heads, self.width), keys, values, *((bias,) if bias else ()), name="read")
        return g.joined(e, self.heads * self.width)

    def own_attend(self, g: Graph, q: str, keys: str, values: str, bias: str) -> str:
        """`attend` as ai.lm2::ChunkAttention: keys and values, whole, are caches that nothing is written to. Keys are divided by sqrt(e) already."""
        nothing = g.constant(np.zeros((1, 0)), "float32")
        given = [q, keys, values, g.constant([self.config.memory.slots]), nothing, nothing, bias or g.constant(np.zeros((1, 1, 1, 1)), "float32")]
        return g.ops(chunk_attention.NAME, *given, outputs=3, skip=(1, 2), domain=DOMAIN, name="read", heads=self.heads, scale=1.0)[0]

    def released(self, g: Graph, x: str, rows: str, pooled: str, attend: Callable[[str, str, str], str], layer: int) -> tuple[str, str]:
        """x (b, t, d) attention output; rows (b, t, n) as the layer below left them; pooled (b, t or 1, d).

        attend(q, k, v) (b, t, h e each) sees rows up to each position. Returns x with the rows added, and the rows as this layer leaves them.
        """
        p, n = f"model.layers.{layer}.memory.", self.config.memory.slots
        m, w = self.matrices, self.matrices.weights
        r = self.narrow(g, rows)
        k, v = g.split(m.linear(g, r, f"{p}key_proj", f"{p}value_proj"), [n, n])
        a = self.widen(g, attend(m.linear(g, x, f"{p}query_proj"), k, v))  # (b, t, n)
        z = self.layer_norm(g, g.op("Add", rows, a), f"{p}norm1")
        mlp, bias = g.store.add(f"{p}mlp.weight", w[f"{p}mlp.weight"].T), m.vector(g, f"{p}mlp.bias")
        u = z
        for _ in range(2):
            u = g.op("Relu", g.op("Add", g.op("MatMul", u, mlp, name="mlp"), bias))
        z = self.layer_norm(g, g.op("Add", z, u), f"{p}norm2")
        own = np.repeat(np.array([w[f"{p}input_bias"], w[f"{p}forget_bias"]], np.float32), n)  # (2n,)
        tokens = m.linear(g, pooled, f"{p}token_gate", wide=True, bias=w[f"{p}token_gate.bias"] + own)  # (b, t or 1, 2n)
        gates = g.op("Add", tokens, m.linear(g, g.op("Tanh", rows), f"{p}bank_gate", wide=True))  # (b, t, 2n)
        i, f = g.split(gates, [n, n])
        rows = self.seen[f"layers.{layer}.memory.rows"] = self.update(g, i, f, z, rows)
        return g.op("Add", x, self.narrow(g, rows)), rows

    def lifted(self, g: Graph, x: str, layer: int) -> str:
        """relu(scale x) of x (b, t, d), float32: what the token gate pools (cell released)."""
        scale = self.matrices.vector(g, f"model.layers.{layer}.memory.token_gate.scale")
        return g.op("Relu", g.op("Mul", self.widen(g, x), scale))

    def rms(self, g: Graph, x: str, weight: str) -> str:
        return g.op("RMSNormalization", x, self.matrices.vector(g, weight), axis=-1, epsilon=self._eps(weight))

    def joined_rms(self, g: Graph, x: str, a: str, weight: str) -> tuple[str, str]:
        """x + a and its norm, float32 (b, t, d) each, as one node of ONNX Runtime's."""
        n, *_, total = g.ops(
            "SkipSimplifiedLayerNormalization", x, a, self.matrices.vector(g, weight),
            outputs=4, skip=(1, 2), domain=CONTRIB, name="joined", epsilon=self._eps(weight),
        )  # fmt: skip
        return total, n

    def _eps(self, weight: str) -> float:
        eps = self.config.rms_norm_eps
        return self.stream.eps(eps) if self.stream is not None and weight.endswith(NORMS) else eps

    def layer_norm(self, g: Graph, x: str, name: str) -> str:
        weight, bias = (self.matrices.vector(g, f"{name}.{part}") for part in ("weight", "bias"))
        return g.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)
