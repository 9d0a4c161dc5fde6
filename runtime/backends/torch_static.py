"""Chunks in buffers that are used again, one CUDA graph per set of buffers: how the torch backend decodes on CUDA.

Knows devices, graphs and who holds which buffers; the step itself is models/decode.py. Buffers hold a chunk while somebody holds the chunk; afterwards the next
chunk of as many sequences gets them, with the graph that was captured on them. Runs on a CPU without graphs, for tests.
Axes: b batch, t tokens, v vocabulary.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models import decode
from ...models.kernels.choice import wanted
from ...models.lm2 import LM2, ChunkState

KEPT = 2  # unused sets of buffers kept for each batch size
WARM_UPS = 2  # steps before a capture: they compile kernels and let libraries allocate


def suits(model: LM2) -> bool:
    """Whether this backend decodes the model on static buffers: on CUDA, in a cell that has a step, and not switched off (LM2_KERNELS=reference)."""
    return model.device.type == "cuda" and decode.steps(model) and wanted()


class Slot:
    """One set of buffers, the host's side of their inputs, and the graph of their step once it was captured."""

    def __init__(self, model: LM2, batch: int):
        self.buffers = decode.new_buffers(model, batch)
        self.host = torch.zeros(2 * batch, dtype=torch.long, pin_memory=model.device.type == "cuda")  # (2b,)
        self.graph: Any = None


class Lease:
    """Holds a slot; gives it back when the last chunk that refers to it is gone."""

    def __init__(self, slot: Slot, free: list[Slot]):
        self.slot, self._free = slot, free

    def __del__(self) -> None:
        if len(self._free) < KEPT:
            self._free.append(self.slot)


class StaticChunk(NamedTuple):
    """A chunk in progress in leased buffers. inner: the same chunk as LM2.extend and LM2.commit know it."""

    inner: ChunkState
    lease: Lease

    @property
    def length(self) -> int:
        return self.inner.length


class StaticDecoder:
    """Starts chunks in static buffers and feeds them: one token by a replayed graph, more by LM2.extend into the same buffers. Keeps no conversation."""

    def __init__(self, model: LM2, tables: tuple[Tensor, Tensor], beside: bool = True):
        """`beside`: a captured step reads the memory on a second stream (models/decode.py)."""
        self.model, self.tables, self.beside = model, tables, beside
        self.graphs = model.device.type == "cuda"
        self._free: dict[int, list[Slot]] = {}
        self._pool: Any = None
        self._lock = threading.Lock()  # a capture must not meet launches of another thread

    def start(self, bank: Tensor, chunks: int) -> StaticChunk:
        """A chunk that reads bank (l, b, n, d)."""
        with self._lock:
            free = self._free.setdefault(bank.shape[1], [])
            try:
                slot = free.pop()
            except IndexError:
                slot = Slot(self.model, bank.shape[1])
            return StaticChunk(decode.begin(self.model, slot.buffers, bank, chunks), Lease(slot, free))

    def extend(self, ids: Tensor, chunk: StaticChunk, all_logits: bool) -> tuple[Tensor, StaticChunk]:
        """Feed ids (b, t), on the host. Returns logits (b, t or 1, v) on the device, good until the next call, and the longer chunk."""
        with self._lock:
            if ids.shape[1] > 1:
                logits, inner = self.model.extend(ids.to(self.model.device), chunk.inner, self.tables, all_logits)
                return logits, chunk._replace(inner=inner)
            slot = chunk.lease.slot
            slot.host[: len(ids)] = ids[:, 0]
            slot.host[len(ids) :] = chunk.length
            slot.buffers.inputs.copy_(slot.host, non_blocking=True)
            self.step(slot)
            return slot.buffers.logits[:, None], chunk._replace(inner=chunk.inner._replace(length=chunk.length + 1))

    def step(self, slot: Slot) -> None:
        """Feed what lies in the slot's inputs, at the positions there: queues the work and returns."""
        if not self.graphs:
            decode.step(self.model, slot.buffers, self.tables)
            return
        if slot.graph is None:
            self._capture(slot)
        slot.graph.replay()

    def _capture(self, slot: Slot) -> None:
        """Feeding a token again at its position changes nothing, so warm-up steps run on the chunk itself."""
        if self._pool is None:
            self._pool = (
                torch.cuda.graph_pool_handle()
            )  # one pool: graphs are replayed one after another, and what they leave lies in the buffers
        with torch.cuda.device(self.model.device):
            stream, second = torch.cuda.Stream(), torch.cuda.Stream() if self.beside else None
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    decode.step(self.model, slot.buffers, self.tables, second)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                decode.step(self.model, slot.buffers, self.tables, second)
            slot.graph = graph


def extra_bytes(model: LM2) -> int:
    """Bytes of one sequence's static buffers beyond those of LM2.start's chunk: the rows as they were, one row of sums, logits, inputs."""
    c, m = model.config, model.config.memory
    exact = torch.finfo(decode.wide(model.dtype)).bits // 8
    sums = 0 if m.cell == "gated" else c.num_hidden_layers * c.hidden_size
    return (m.banks * m.chunk * c.hidden_size + sums + c.vocab_size) * exact + 16
