"""What every layer of the PyTorch model computed for one window, by name: for comparing backends, not for running.

Knows the modules of lm2.py and watches them with forward hooks, so what is seen is what `extend` does. Changes nothing it watches.
Axes: b batch, t positions, d hidden, l banks, n rows, v vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .lm2 import LM2
from .memory import GatedMemory


def trace(model: LM2, ids: Tensor, bank: Tensor, written: int, tables: tuple[Tensor, Tensor]) -> list[tuple[str, Tensor]]:
    """Feed ids (b, t) to a new window that reads `bank` (l, b, n, d): names and tensors in the order of computation.

    `embedding`; per layer i `layers.i.attention`, with a memory `layers.i.memory.read` and `.add` (cell gated) and `.rows` (new rows),
    `layers.i.output`, each (b, t, d); then `norm` (b, t, d) and `logits` (b, t, v). Raises ValueError past the window's end.
    """
    found: dict[str, Tensor] = {}
    handles = []

    def after(module: torch.nn.Module, keep: Callable[[Any], None]) -> None:
        handles.append(module.register_forward_hook(lambda _module, _args, out: keep(out)))

    def before(module: torch.nn.Module, name: str) -> None:
        handles.append(module.register_forward_pre_hook(lambda _module, args: found.update({name: args[0]})))

    def attention_of(layer: int) -> Callable[[Tensor], None]:
        return lambda out: found.update({f"layers.{layer}.attention": out})

    def memory_of(layer: int) -> Callable[[tuple[Tensor | None, Tensor]], None]:
        def keep(out: tuple[Tensor | None, Tensor]) -> None:
            add, rows = out
            if isinstance(model.blocks[layer].memory, GatedMemory):
                read = rows.chunk(2, dim=-1)[1]  # (b, t, d): the row waits, and is made of it
                found[f"layers.{layer}.memory.read"] = read
                found[f"layers.{layer}.memory.add"] = torch.zeros_like(read) if add is None else add
            found[f"layers.{layer}.memory.rows"] = rows

        return keep

    after(model.embed_tokens, lambda out: found.update(embedding=out))
    for i, block in enumerate(model.blocks):
        after(block.self_attn, attention_of(i))
        if block.memory is not None:
            after(block.memory, memory_of(i))
        before(model.norm if i == len(model.blocks) - 1 else model.blocks[i + 1].input_layernorm, f"layers.{i}.output")
    after(model.norm, lambda out: found.update(norm=out))
    try:
        logits, window = model.extend(ids, model.start(bank, written), tables, all_logits=True)  # (b, t, v)
    finally:
        for handle in handles:
            handle.remove()
    if model.config.memory.cell == "gated":
        rows = model.rows(window)  # (l, b, t, d)
        found |= {f"layers.{i}.memory.rows": rows[j] for i, j in model.bank_of.items()}
    return [*found.items(), ("logits", logits)]
