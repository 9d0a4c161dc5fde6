"""The step graph: one call of a window, prefill and decoding alike, with all state as inputs past_* and outputs present_*.

Knows a model's configuration and how its parts are joined; the parts are in attention.py, memory.py and linear.py. Names, shapes and types are
the interface that docs/onnx.md describes.

Axes: b batch, t positions of a call, p positions since the last fold, W positions of a window, T positions between folds, n rows of a bank, d hidden, l banks, L layers,
k key/value heads, h memory heads, e head width, v vocabulary.
"""

from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper

from ..models.config import LM2Config
from .attention import Place, WindowAttention, whole_attention, write_at
from .border import Border, stacked
from .graph import END, Graph
from .linear import Matrices
from .memory import MemoryLayers, Update, wider
from .options import Options
from .weights import Weights


@dataclass
class Interface:
    """Inputs and outputs in order: name -> (ONNX element type, shape). state: past name -> present name."""

    inputs: dict[str, tuple[int, list[int | str]]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, list[int | str]]] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)


class Step:
    """Builds the graph of a model. After `build`, `graph` and `interface` are complete."""

    def __init__(self, graph: Graph, config: LM2Config, weights: Weights, options: Options, update: Update):
        self.graph, self.config, self.options = graph, config, options
        self.matrices = Matrices(weights, options)
        self.memory = MemoryLayers(config, self.matrices, update)
        self.stream = self.memory.stream
        self.border = Border(graph, config, self.memory)
        self.interface = Interface()
        self.kind = TensorProto.FLOAT16 if options.half else TensorProto.FLOAT
        self.trace = self.memory.seen  # name of what a layer computes -> value of the graph, in the order of computation
        self._made: dict[str, str] = {}

    @property
    def exact(self) -> bool:
        """Cell released with chunk pooling: later tokens change earlier ones, so each call computes the whole chunk."""
        return self.config.memory.cell == "released" and self.config.memory.gate_pool == "chunk"

    @property
    def gated(self) -> bool:
        """Whether the window goes on while rows enter the bank."""
        return self.config.memory.cell == "gated"

    @property
    def each(self) -> bool:
        """Whether every sequence of a batch stands at a position of its own; else all share one."""
        return self.gated and self.options.own_attention

    @property
    def window(self) -> int | str:
        """Positions of a window: a number, or an axis that whoever runs the file chooses."""
        return (self.options.window or "window") if self.gated else self.config.memory.chunk

    def build(self) -> None:
        """Add every node, declare every input and output."""
        g, c, m = self.graph, self.config, self.config.memory
        int64 = TensorProto.INT64
        self._input("input_ids", int64, ["batch", "tokens"])
        self._input("new_chunk", int64, [1])
        if self.gated:
            self._input("carry", int64, [1])
        self._input("logits_from", int64, [1])
        self.interface.outputs["logits"] = (TensorProto.FLOAT, ["batch", "positions", c.vocab_size])
        for number in ("length", "written", *(("folded",) if self.gated else ())):
            self._state(number, int64, ["batch"] if self.each else [1])
        if m.banks:
            self._state("bank", TensorProto.FLOAT, ["batch", m.banks, m.slots, c.hidden_size])
            if self.gated:
                self._state("writes", TensorProto.FLOAT, ["batch", m.banks, m.chunk, self.memory.write_width])
            else:
                self._state("rows", TensorProto.FLOAT, ["batch", m.banks, m.chunk, c.hidden_size])
        with g.scope("window"):
            place = self._begin()
        self._made["logits"] = self._exact(place) if self.exact else self._layers(place)
        g.outputs_as({made: name for name, made in self._unique().items()})

    def _unique(self) -> dict[str, str]:
        """Outputs by name; a value that is an input or two outputs at once goes through an Identity."""
        seen: set[str] = set()
        out = {}
        for name, made in self._made.items():
            if made in seen or made in self.interface.inputs:
                made = self.graph.op("Identity", made)
            seen.add(made)
            out[name] = made
        return out

    def _begin(self) -> Place:
        """Where the call stands. Unless new_chunk is 0, the rows of the positions since the last fold enter the bank first.

        new_chunk: 0 go on; 1 begin a window, positions start again at 0; 2 as 1 where only the bank is wanted: what the window would read is
        not computed; 3 fold, positions go on (cell gated). Numbers are (1,), or (b,) where each sequence has its own.
        """
        g, m = self.graph, self.config.memory
        batch, tokens, some = g.size("input_ids", 0), g.size("input_ids", 1), g.op("Min", "new_chunk", g.constant([1]))
        if self.gated:
            numbers = g.op("Concat", "past_length", "past_written", "past_folded", axis=0)
            length, written, folded = g.ops("Split", numbers, outputs=3, num_outputs=3)  # copies: each may be overwritten by its present_X
            open_ = g.op("Max", g.op("Sub", length, folded), g.constant([0]))  # carried ones not reached are no rows
            self.finished = g.op("Mul", open_, some, name="rows_finished")
            again = g.cast(g.op("Mod", "new_chunk", g.constant([3])), "bool")
            past = g.op("Where", again, g.constant([0]), length, name="position")
            self.folded = g.op("Where", again, "carry", g.op("Add", folded, self.finished))
            self._made["present_folded"] = self.folded
            self.first = g.op("Mod", written, g.constant([m.slots]))
            self._made["present_written"] = g.op("Add", written, self.finished)
        else:
            self.finished = g.op("Mul", "past_length", some, name="rows_finished")  # (1,)
            past = g.op("Sub", "past_length", self.finished, name="position")
            self.first = g.constant([0])
            self._made["present_written"] = g.op("Add", "past_written", self.finished)
        end = g.op("Add", past, tokens)
        place = Place(batch, tokens, past, end, self.each)
        self._made["present_length"] = end
        if m.banks:
            if self.gated:
                self.border.place(place, self.finished)
                rows = self.border.rows("past_writes", "past_bank", self.first)
            else:
                rows = g.slice("past_rows", g.constant([0]), self.finished, 2)  # (b, l, p or 0, d)
            self._made["present_bank"] = write_at(g, "past_bank", rows, self.first, 2, place, m.slots if self.gated else 0)
        return place

    def _layers(self, place: Place) -> str:
        """All layers over the call's tokens, with caches; float32 logits (b, positions, v)."""
        g, c, m = self.graph, self.config, self.config.memory
        x = self.trace["embedding"] = self._embedding("input_ids")  # (b, t, d)
        gated = self.gated
        positions = (self.options.window or c.max_position_embeddings) if gated else m.chunk
        attention = WindowAttention(g, c, place, self.matrices.dtype, self.options, positions)
        reads: dict[int, tuple[str, str]] = {}
        rows = looks = around = ""
        if gated and m.layers:
            reads = self._reads(place)
            around = self._around(place) if m.topics else ""
        elif not gated:
            old = g.slice(self._made["present_bank"], place.past, place.end, 2)  # (b, 1, t, d)
            rows = g.op("Gather", old, g.constant(0), axis=1)  # (b, t, d)
            self._state("sums", TensorProto.FLOAT, ["batch", c.num_hidden_layers, m.chunk, c.hidden_size])
            before = g.op("Max", g.op("Sub", place.past, g.constant([1])), g.constant([0]))
            sums = g.slice("past_sums", before, g.op("Add", before, g.constant([1])), 2)  # (b, L, 1, d)
            started = g.op("Greater", place.past, g.constant([0]))
            self.before = g.op("Where", started, sums, g.constant(0.0, "float32"))  # (b, L, 1, d)
            line = g.op("Range", g.constant(1), g.op("Add", g.op("Squeeze", place.tokens), g.constant(1)), g.constant(1))
            count = g.cast(g.op("Add", line, place.past), "float32")
            self.count = g.op("Unsqueeze", count, g.constant([1]))  # (t, 1)
        write_list: list[str] = []
        topics: list[str] = []
        sum_list: list[str] = []
        n = self._first_norm(x)
        for i in range(c.num_hidden_layers):
            with g.scope(f"layers.{i}"):
                a = self._self_attention(n, attention, i)
                if i in m.layers and gated:
                    if self.memory.topics and i == m.layers[0]:
                        values = [self._made[f"present_value.{k}"] for k in m.topics]
                        looks, features = self.memory.topics.looks(g, values, around, place)
                        topics.append(wider(g, features, self.memory.write_width - self.memory.topics.width))
                    a, write = self.memory.gated(g, x, a, *reads[i], i, looks)
                    write_list += write
                elif i in m.layers:
                    a, rows = self._released(a, rows, attention, i, sum_list)
                x, n = self._finish(x, a, i, "logits_from" if i == c.num_hidden_layers - 1 else "")
        if not gated:
            self._made["present_sums"] = write_at(g, "past_sums", stacked(g, sum_list), place.past, 2, place)
            self._made["present_rows"] = write_at(g, "past_rows", g.op("Unsqueeze", rows, g.constant([1])), place.past, 2, place)
        elif m.layers:
            writes = g.reshape(g.op("Concat", *write_list, *topics, axis=-1), 0, 0, m.banks, -1)  # (b, t, l, w)
            self._made["present_writes"] = self._kept(g.op("Transpose", writes, perm=[0, 2, 1, 3]), place)
        return self._head(n)

    def _kept(self, writes: str, place: Place) -> str:
        """past_writes with writes (b, l, t, w) of the call's positions in it, those before `folded` left out: they are carried.

        Where one sequence leaves out fewer than another, the other's carried ones go to its last places, round the end: nothing lies there, since
        it begins.
        """
        g, chunk = self.graph, self.config.memory.chunk
        behind = g.op("Sub", self.folded, place.past)
        out = place.first(g, g.op("Max", behind, g.constant([0])))  # (1,)
        own = g.slice(writes, out, g.constant([END]), 2)  # (b, l, t or less, w)
        at = g.op("Mod", g.op("Sub", out, behind), g.constant([chunk]))
        return write_at(g, "past_writes", own, at, 2, place, chunk)

    def _embedding(self, ids: str) -> str:
        """The residual stream as it begins, (b, t, d); with loud channels in places of their own, (b, t, w)."""
        x = self._scaled(self.matrices.embedding(self.graph, ids))
        return x if self.stream is None else self.graph.op("Mul", x, self.graph.constant(self.stream.quiet(), "float32"))

    def _scaled(self, x: str) -> str:
        scale = self.config.backbone.embedding_scale
        return x if scale == 1 else self.graph.op("Mul", x, self.graph.constant(scale, self.matrices.dtype))

    def _self_attention(self, n: str, attention: WindowAttention, i: int) -> str:
        """The attention output (b, t, d) of the normed stream n (b, t, d), float32."""
        g, c = self.graph, self.config
        shape: list[int | str] = ["batch", c.num_key_value_heads, self.window, c.head_dim]
        past = self._pair("", i, self.kind, shape)
        a, *present = attention.self_attention(g, self._projected(n, i), past, c.backbone.turns(i), c.backbone.window(i))
        self._made[f"present_key.{i}"], self._made[f"present_value.{i}"] = present
        return self._attended(a, i)

    def _projected(self, n: str, i: int) -> tuple[str, ...]:
        """Queries, keys and values of the normed stream n (b, t, d): one value (b, t, (h + 2k) e), or three where the backbone norms the first two."""
        g, c, p = self.graph, self.config, f"model.layers.{i}.self_attn."
        h, k, e = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        qkv = self.matrices.linear(g, self.memory.narrow(g, n), *(f"{p}{q}_proj" for q in "qkv"))
        if c.backbone.qk_norm == "none":
            return (qkv,)
        q, key, value = g.split(qkv, [h * e, k * e, k * e])
        return self._normed_heads(q, h, f"{p}q_norm.weight"), self._normed_heads(key, k, f"{p}k_norm.weight"), value

    def _normed_heads(self, x: str, heads: int, weight: str) -> str:
        """x (b, t, heads e), each head normed, or all as a whole."""
        g, e = self.graph, self.config.head_dim
        if self.config.backbone.qk_norm == "whole":
            return self.memory.narrow(g, self._norm(x, weight))
        return g.reshape(self.memory.narrow(g, self._norm(g.reshape(x, 0, 0, heads, e), weight)), 0, 0, heads * e)

    def _attended(self, a: str, i: int) -> str:
        """What joins the residual stream (b, t, d) of the heads' a (b, t, h e)."""
        a = self._output_normed(self.matrices.linear(self.graph, a, f"model.layers.{i}.self_attn.o_proj"), f"model.layers.{i}.self_attn")
        self.trace[f"layers.{i}.attention"] = a
        return a

    def _output_normed(self, a: str, part: str) -> str:
        """a (b, t, d) of an attention or an MLP, normed where the backbone does that after it."""
        if self.config.backbone.norms == "before":
            return a
        return self.memory.narrow(self.graph, self._norm(a, f"{part}.output_norm.weight"))

    def _released(self, a: str, rows: str, attention: WindowAttention, i: int, sums: list[str]) -> tuple[str, str]:
        """Cell released, causal pooling: running sums and the rows' own keys and values are caches too."""
        g, m = self.graph, self.config.memory
        past = self._pair("memory_", i, self.kind, ["batch", m.heads, m.chunk, m.head_dim])
        lifted = self.memory.lifted(g, a, i)
        running = g.op("Add", g.op("CumSum", lifted, g.constant(1)), g.op("Gather", self.before, g.constant(i), axis=1))  # (b, t, d)
        sums.append(g.op("Unsqueeze", running, g.constant([1])))

        def attend(q: str, k: str, v: str) -> str:
            out, *present = attention.cached(g, q, k, v, past, m.heads, m.heads, m.head_dim)
            self._made[f"present_memory_key.{i}"], self._made[f"present_memory_value.{i}"] = present
            return out

        return self.memory.released(g, a, rows, g.op("Div", running, self.count), attend, i)

    def _reads(self, place: Place) -> dict[int, tuple[str, str]]:
        """K and V of each bank: computed by the call that begins a window, of the new rows by one that folds; kept as state by the others."""
        g, m = self.graph, self.config.memory
        past = {i: self._pair("memory_", i, self.kind, ["batch", m.heads, m.slots, m.head_dim]) for i in m.layers}
        fresh = self.border.reads(self._made["present_bank"], past, self.kind, self.first)
        reads = {}
        for i in m.layers:
            k, v = (write_at(g, old, new, self.first, 2, place, m.slots) for old, new in zip(past[i], fresh[i], strict=True))
            self._made[f"present_memory_key.{i}"], self._made[f"present_memory_value.{i}"] = reads[i] = (k, v)
        return reads

    def _around(self, place: Place) -> str:
        """What is near each row of the topics' bank (b, n, d): made and kept as `_reads` does."""
        g, m = self.graph, self.config.memory
        past = self._state("memory_around", TensorProto.FLOAT, ["batch", m.slots, self.config.hidden_size])
        fresh, start = self.border.around(self._made["present_bank"], past, self.first)
        made = self._made["present_memory_around"] = write_at(g, past, fresh, start, 1, place, m.slots)
        return made

    def _exact(self, place: Place) -> str:
        """Cell released, chunk pooling: the chunk's tokens are the state, and all of them are computed again."""
        g, c, m = self.graph, self.config, self.config.memory
        self._state("tokens", TensorProto.INT64, ["batch", m.chunk])
        self._made["present_tokens"] = write_at(g, "past_tokens", "input_ids", place.past, 1, place)
        tokens = g.slice(self._made["present_tokens"], g.constant([0]), place.end, 1)  # (b, s)
        x = self.trace["embedding"] = self._scaled(self.matrices.embedding(g, tokens))  # (b, s, d)
        h, k, e = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        attention = WindowAttention(g, c, Place(place.batch, place.end, g.constant([0]), place.end), self.matrices.dtype, self.options, m.chunk, whole=True)
        old = g.slice(self._made["present_bank"], g.constant([0]), place.end, 2)  # (b, 1, s, d)
        rows = g.op("Squeeze", old, g.constant([1]))  # (b, s, d)

        def attend(q: str, key: str, value: str) -> str:
            return whole_attention(g, q, key, value, m.heads, m.heads, m.head_dim)

        n = self._first_norm(x)
        for i in range(c.num_hidden_layers):
            with g.scope(f"layers.{i}"):
                qkv = self._projected(n, i)
                q, key, value = qkv if len(qkv) == 3 else g.split(qkv[0], [h * e, k * e, k * e])
                turns = c.backbone.turns(i)
                if turns is not None:
                    q, key = attention.turned(g, q, h, turns), attention.turned(g, key, k, turns)
                window = c.backbone.window(i)
                a = self._attended(whole_attention(g, q, key, value, h, k, e, "" if window is None else attention.seen[window][1]), i)
                pooled = g.op("ReduceMean", self.memory.lifted(g, a, i), g.constant([1]), keepdims=1)  # (b, 1, d)
                a, rows = self.memory.released(g, a, rows, pooled, attend, i)
                x, n = self._finish(x, a, i, "")
        stacked = g.op("Unsqueeze", rows, g.constant([1]))
        self._made["present_rows"] = write_at(g, "past_rows", stacked, g.constant([0]), 2, place)
        n = g.slice(n, place.past, place.end, 1)
        return self._head(g.slice(n, "logits_from", g.constant([END]), 1))

    def _finish(self, x: str, a: str, i: int, keep_from: str) -> tuple[str, str]:
        """Residual of the attention output, then the MLP; with `keep_from`, of those positions only.

        Returns the residual stream (b, t, d) and, float32, what the next layer or the head reads of it: normed with the weight that stands there.
        """
        g, p = self.graph, f"model.layers.{i}."
        x, n = self._joined(x, a, f"{p}post_attention_layernorm.weight", keep_from)
        n = self.memory.narrow(g, n)
        gate, up = (self.matrices.linear(g, n, f"{p}mlp.{name}_proj") for name in ("gate", "up"))
        gate = g.op("Mul", gate, g.op("Sigmoid", gate)) if self.config.backbone.activation == "silu" else g.op("Gelu", gate, approximate="tanh")
        y = g.op("Mul", gate, up)
        last = i == self.config.num_hidden_layers - 1
        following = "model.norm.weight" if last else f"model.layers.{i + 1}.input_layernorm.weight"
        x, n = self._joined(x, self._output_normed(self.matrices.linear(g, y, f"{p}mlp.down_proj"), f"{p}mlp"), following)
        self.trace[f"layers.{i}.output"] = x
        return x, n

    def _joined(self, x: str, a: str, weight: str, keep_from: str = "") -> tuple[str, str]:
        """x + a (b, t, d) and its norm, float32: one node where a fused one may stand. Itself where a layer has no norm there."""
        g = self.graph
        plain = self._plain(weight)
        if not (plain or self.options.portable or self.options.half or self.exact or keep_from):
            return self.memory.joined_rms(g, x, a, weight)
        x = g.op("Add", x, a)
        x = g.slice(x, keep_from, g.constant([END]), 1) if keep_from else x
        return x, self.memory.widen(g, x) if plain else self._norm(x, weight)

    def _plain(self, weight: str) -> bool:
        """Whether attention and MLP see the stream as it is, and `weight` is not the last norm's."""
        return self.config.backbone.norms == "after" and weight != "model.norm.weight"

    def _first_norm(self, x: str) -> str:
        weight = "model.layers.0.input_layernorm.weight"
        with self.graph.scope("layers.0"):
            return self.memory.widen(self.graph, x) if self._plain(weight) else self._norm(x, weight)

    def _head(self, n: str) -> str:
        c = self.config
        self.trace["norm"] = n
        x = self.memory.narrow(self.graph, n)
        width = self.stream.width if self.stream else c.hidden_size
        return self.matrices.head(self.graph, x, c.tie_word_embeddings, width, c.vocab_size)

    def _norm(self, x: str, weight: str) -> str:
        return self.memory.rms(self.graph, self.memory.widen(self.graph, x), weight)

    def _input(self, name: str, kind: int, shape: list[int | str]) -> None:
        self.interface.inputs[name] = (kind, shape)

    def _state(self, name: str, kind: int, shape: list[int | str]) -> str:
        past, present = f"past_{name}", f"present_{name}"
        self.interface.inputs[past] = self.interface.outputs[present] = (kind, shape)
        self.interface.state[past] = present
        return past

    def _pair(self, what: str, i: int, kind: int, shape: list[int | str]) -> tuple[str, str]:
        return self._state(f"{what}key.{i}", kind, shape), self._state(f"{what}value.{i}", kind, shape)


def value_infos(entries: dict[str, tuple[int, list[int | str]]]) -> list[onnx.ValueInfoProto]:
    """Declarations of inputs or outputs."""
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in entries.items()]
