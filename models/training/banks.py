"""Banks put together from threads that were read once: what their tokens would write, with gradients for the maps that write it.

What the layers below make of talk hardly depends on the memory's weights, so a thread is read once (kept) and its rows are made anew from what its
memories met. Rows older than those of the threads asked about, and rows written over them later, come without gradients.
Axes: n rows, d hidden, h memory heads, e head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lm2 import LM2
from ..memory import GatedMemory
from . import prefixed
from .threads import Thread


@dataclass
class Kept:
    """A thread as its memories met it. x, read: of each memory, (n, d) without the head's tokens; features: of its topics (n, f), None without."""

    thread: Thread
    x: list[Tensor]
    read: list[Tensor]
    features: Tensor | None = None


@dataclass(frozen=True)
class Written:
    """What rows become: new * 1 + forget * old. new, forget: of each bank, (n, d); gate: the memories' input gates, (n, d)."""

    new: list[Tensor]
    forget: list[Tensor]
    gate: list[Tensor]


def keep(model: LM2, thread: Thread, reads: prefixed.Reads, tables: tuple[Tensor, Tensor]) -> Kept:
    """Read a thread once, beside the banks behind `reads`."""
    ids = torch.tensor(thread.ids, device=model.device)  # (t,)
    met: list[Tensor] = []
    _, seen = prefixed.window(model, ids, reads, tables, model.config.memory.layers[-1] + 1, met)
    features = met[0][0, thread.head :].clone() if met and model.topics is not None else None  # (n, f)
    return Kept(thread, [s.x[0, thread.head :].clone() for s in seen], [s.read[0, thread.head :].clone() for s in seen], features)


def write(memories: Sequence[GatedMemory], kept: Kept) -> Written:
    """What a thread's tokens write, as the memories are now."""
    new, forget, gates = [], [], []
    for memory, x, read in zip(memories, kept.x, kept.read, strict=True):
        i, z = memory.token_proj(memory.norm(x)).chunk(2, dim=-1)  # (n, d) each
        gate = torch.sigmoid(i + memory.input_bias)  # (n, d)
        d = x.shape[-1]
        f = torch.nn.functional.linear(read, memory.read_proj.weight[d:], memory.read_proj.bias[d:])  # (n, d)
        new.append(gate * torch.tanh(read + z if memory.both else z))
        forget.append(torch.sigmoid(f))
        gates.append(gate)
    topics = memories[0].topics
    if topics is not None and kept.features is not None:
        new.append(gates[0].mean(-1, keepdim=True) * topics.write(kept.features))
        forget.append(torch.sigmoid(topics.keep).expand_as(new[-1]))
    return Written(new, forget, gates)


def joined(parts: Sequence[Written], old: Sequence[Tensor] | None, rounds: Sequence[Written]) -> list[Tensor]:
    """A bank's rows after the threads `parts` were written one after the other, over `old` (n, d) of each memory (None: never written), and `rounds`
    later talk over them, each as long as the bank."""
    banks = []
    for j in range(len(parts[0].new)):
        new = torch.cat([p.new[j] for p in parts])  # (n, d)
        bank = new if old is None else new + torch.cat([p.forget[j] for p in parts]) * old[j]
        for later in rounds:
            bank = later.new[j] + later.forget[j] * bank
        banks.append(bank)
    return banks


def reads(memories: Sequence[GatedMemory], banks: Sequence[Tensor], empty: int = 0) -> prefixed.Reads:
    """Keys and values (1, h, n, e) of banks (n, d), and of `empty` rows that were never written; what is near each row, with topics."""
    out: list[prefixed.KV] = []
    topics = memories[0].topics
    for memory, bank in zip(memories, banks, strict=topics is None):
        k, v = memory.keys_values(bank[None], bank.dtype, told=None if topics is None else banks[-1][None])  # (1, h, n, e) each
        out.append((torch.nn.functional.pad(k, (0, 0, 0, empty)), torch.nn.functional.pad(v, (0, 0, 0, empty))))
    around = None if topics is None else topics.around(torch.nn.functional.pad(banks[-1], (0, 0, 0, empty))[None])  # (1, n, d)
    return prefixed.Reads(out, around)
