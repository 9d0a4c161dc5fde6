"""Windows in buffers that are used again, one CUDA graph per set of buffers: how the torch backend decodes on CUDA.

Knows devices, graphs and who holds which buffers; the step itself is models/decode.py. Buffers hold a window while somebody holds the window; afterwards the
next window of as many sequences and positions gets them, with the graph that was captured on them. Runs on a CPU without graphs, for tests.
Axes: b batch, t tokens, v vocabulary.
"""

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models import decode
from ...models.kernels.choice import wanted
from ...models.lm2 import LM2, WindowState
from ...models.opening import Opening, carried_with

KEPT = 2  # unused sets of buffers kept for each batch size and window
WARM_UPS = 2  # steps before a capture: they compile kernels and let libraries allocate


def suits(model: LM2) -> bool:
    """Whether this backend decodes the model on static buffers: on CUDA, in a cell that has a step, and not switched off (LM2_KERNELS=reference)."""
    return model.device.type == "cuda" and decode.steps(model) and wanted()


class Slot:
    """One set of buffers, the host's side of their inputs, and the graph of their step once it was captured."""

    def __init__(self, model: LM2, batch: int, window: int):
        self.buffers = decode.new_buffers(model, batch, window)
        self.tables = model.tables(window)
        self.host = torch.zeros(3 * batch, dtype=torch.long, pin_memory=model.device.type == "cuda")  # (3b,)
        self.graph: Any = None
        self.folded = 0  # of the window that is in the buffers


class Lease:
    """Holds a slot; gives it back when the last window that refers to it is gone."""

    def __init__(self, slot: Slot, free: list[Slot]):
        self.slot, self._free = slot, free

    def __del__(self) -> None:
        if len(self._free) < KEPT:
            self._free.append(self.slot)


class StaticWindow(NamedTuple):
    """A window in progress in leased buffers. inner: the same window as LM2.extend and LM2.commit know it."""

    inner: WindowState
    lease: Lease

    @property
    def length(self) -> int:
        return self.inner.length

    @property
    def folded(self) -> int:
        return self.inner.folded

    @property
    def stale(self) -> bool:
        return self.inner.folded != self.lease.slot.folded


class StaticDecoder:
    """Starts windows in static buffers and feeds them: one token by a replayed graph, more by LM2.extend into the same buffers. Keeps no conversation."""

    def __init__(self, model: LM2, beside: bool = True):
        """`beside`: a captured step reads the memory on a second stream (models/decode.py)."""
        self.model, self.beside = model, beside
        self.graphs = model.device.type == "cuda"
        self._free: dict[tuple[int, int], list[Slot]] = {}
        self._pool: Any = None
        self._lock = threading.Lock()  # a capture must not meet launches of another thread

    def start(
        self, bank: Tensor, written: int, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> StaticWindow:
        """A window that reads bank (l, b, n, d); written, window, carried, opening: see LM2.start."""
        size = window or self.model.config.memory.chunk
        self.model.check_window(size, carried)
        carried = carried_with(opening, self.model.config, size, carried, torch.finfo(self.model.dtype).max)
        with self._lock:
            free = self._free.setdefault((bank.shape[1], size), [])
            try:
                slot = free.pop()
            except IndexError:
                slot = Slot(self.model, bank.shape[1], size)
            slot.folded = carried
            return StaticWindow(decode.begin(self.model, slot.buffers, bank, written, carried, opening), Lease(slot, free))

    def extend(self, ids: Tensor, window: StaticWindow, all_logits: bool) -> tuple[Tensor, StaticWindow]:
        """Feed ids (b, t), on the host. Returns logits (b, t or 1, v) on the device, good until the next call, and the longer window."""
        with self._lock:
            slot, inner = window.lease.slot, window.inner
            if ids.shape[1] > 1:
                logits, inner = self.model.extend(ids.to(self.model.device), inner, slot.tables, all_logits)
                return logits, window._replace(inner=inner)
            b = len(ids)
            slot.host[:b] = ids[:, 0]
            slot.host[b : 2 * b] = window.length
            slot.host[2 * b :] = decode.place(inner, self.model.config.memory.chunk)
            slot.buffers.inputs.copy_(slot.host, non_blocking=True)
            self.step(slot)
            return slot.buffers.logits[:, None], window._replace(inner=inner._replace(length=window.length + 1))

    def fold(self, window: StaticWindow) -> StaticWindow:
        """LM2.fold, in the window's buffers."""
        with self._lock:
            slot = window.lease.slot
            folded = window._replace(inner=decode.fold(self.model, slot.buffers, window.inner))
            slot.folded = folded.folded
            return folded

    def step(self, slot: Slot) -> None:
        """Feed what lies in the slot's inputs, at the positions there: queues the work and returns."""
        if not self.graphs:
            decode.step(self.model, slot.buffers, slot.tables)
            return
        if slot.graph is None:
            self._capture(slot)
        slot.graph.replay()

    def _capture(self, slot: Slot) -> None:
        """Feeding a token again at its position changes nothing, so warm-up steps run on the window itself."""
        if self._pool is None:
            self._pool = (
                torch.cuda.graph_pool_handle()
            )  # one pool: graphs are replayed one after another, and what they leave lies in the buffers
        with torch.cuda.device(self.model.device):
            stream, second = torch.cuda.Stream(), torch.cuda.Stream() if self.beside else None
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    decode.step(self.model, slot.buffers, slot.tables, second)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                decode.step(self.model, slot.buffers, slot.tables, second)
            slot.graph = graph


def extra_bytes(model: LM2) -> int:
    """Bytes of one sequence's static buffers beyond those of LM2.start's window: the rows as they were, two rows nobody reads, one row of sums, logits, inputs."""
    c, m = model.config, model.config.memory
    exact = torch.finfo(decode.wide(model.dtype)).bits // 8
    sums = 0 if m.cell == "gated" else c.num_hidden_layers * c.hidden_size
    return (m.banks * (m.chunk + 2) * c.hidden_size + sums + c.vocab_size) * exact + 24
