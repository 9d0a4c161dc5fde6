"""Sections of benchmarks/gpu.py about agreement with float64 on the CPU: one chunk at a time, and a memory carried over 100 chunks."""

from dataclasses import replace

import numpy as np
import torch
from gpu_bench import Bench, Section
from gpu_floors import published, smollm2, toy

from lm2.runtime.parity.gates import GATES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _pair(bench, config, dtype):
    """The device's backend in a dtype, and the same (rounded) weights in float64 on the CPU."""
    from lm2.models.weights import new_model, random_model
    from lm2.runtime.backends.torch_backend import TorchBackend

    model = random_model(config, bench.seed, dtype).to(bench.device)
    exact = new_model(config, dtype=torch.float64)
    with torch.no_grad():
        for (name, to), (_, p) in zip(exact.named_parameters(), model.named_parameters(), strict=True):
            assert to.shape == p.shape, name
            to.copy_(p)
    return TorchBackend(model, static=True), exact


def _fed(backend, state, ids):
    """One chunk on the device, two thirds by prefill and the rest token by token: logits (t, v) and the next state."""
    logits, cut = [], len(ids) * 2 // 3
    chunk = backend.start(1, state)
    for piece in (ids[:cut], *(ids[k : k + 1] for k in range(cut, len(ids)))):
        out, chunk = backend.extend(piece, chunk, all_logits=True)
        logits.append(out[0])
    return np.concatenate(logits), backend.commit(chunk)


def _exact(exact, bank, ids, written):
    """The same chunk in float64, after `written` tokens: logits (t, v) and the next bank."""
    with torch.inference_mode():
        want, bank = exact(torch.as_tensor(ids)[None], bank, written)
    return want[0].numpy(), bank


def _nmse(got, want):
    return float(np.square(got - want).sum() / np.square(want).sum())


def parity(bench: Bench) -> Section:
    """Logits of every position, and the bank after each chunk from the same bank, through prefill and graphs. Gates are `lm2 parity`'s."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    out = Section(["against float64 on the CPU", "dtype", "logits, relative L2", "largest", "likeliest the same", "bank NMSE"])
    rows = 16 if bench.toy else 64
    small = replace(smollm2(), name="SmolLM2's shape, 64 rows", memory=replace(smollm2().memory, slots=rows, chunk=rows))
    wide = replace(published("released"), hidden_size=256, intermediate_size=768, num_attention_heads=4, num_key_value_heads=2, vocab_size=4096,
                   num_hidden_layers=4, memory=replace(published("released").memory, slots=256, chunk=256, layers=(0, 1, 2, 3), heads=4))  # fmt: skip
    for config, length in ((small, rows), (wide, 40)):
        config, length = (toy(config), 5) if bench.toy else (config, length)
        for name, dtype in list(DTYPES.items())[: 2 if bench.toy else 3]:
            bench.free()
            backend, exact = _pair(bench, config, dtype)
            rng, gates, state = np.random.default_rng(bench.seed), GATES[name], None
            worst = [0.0, 0.0, 0.0]
            same = clear = 0
            for c in range(2):
                ids = rng.integers(0, config.vocab_size, length)
                bank = exact.initial_bank() if state is None else torch.from_numpy(backend.to_host(state)).double()
                (got, state), (want, bank) = _fed(backend, state, ids), _exact(exact, bank, ids, c * length)
                top = np.sort(want, axis=-1)
                apart = top[:, -1] - top[:, -2] > 1e-3
                same, clear = same + int((got.argmax(-1) == want.argmax(-1))[apart].sum()), clear + int(apart.sum())
                figures = (
                    float(np.linalg.norm(got - want) / np.linalg.norm(want)),
                    float(np.abs(got - want).max()),
                    _nmse(backend.to_host(state), bank.numpy()),
                )
                worst = [max(w, f) for w, f in zip(worst, figures, strict=True)]
            l2, largest, nmse = worst
            out.rows.append([config.name, name, f"{l2:.2g}", f"{largest:.2g}", f"{same}/{clear}", f"{nmse:.2g}"])
            good = l2 <= (gates.logits_l2 or 0) and nmse <= (gates.bank or 0)
            if name == "float32":
                good = good and largest <= (gates.logits_max or 0) and same == clear
            out.judged.append(
                (
                    f"parity of {config.name}, {name}",
                    f"relative L2 {l2:.2g}, NMSE {nmse:.2g}",
                    f"<= {gates.logits_l2:g}, {gates.bank:g}",
                    good,
                )
            )
    return out


def drift(bench: Bench) -> Section:
    """100 chunks, 4 layers of width 256: the bank after each from the same bank, and a bank that each side carries by itself, NMSE at worst.

    The second is what the model makes of rounding as well as the device's own; with random weights it depends on the seed (docs/gpu.md).
    """
    out = Section(["bank against float64", "dtype", "chunks", "each from the same bank", "carried, at the end", "carried, worst"])
    config = replace(
        smollm2(), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=1024,
        name="4 layers of 256", memory=replace(smollm2().memory, slots=32, chunk=32, layers=(1, 3), heads=4),
    )  # fmt: skip
    config, count = (toy(config), 2) if bench.toy else (config, 100)
    for name, dtype in list(DTYPES.items())[: 2 if bench.toy else 3]:
        backend, exact = _pair(bench, config, dtype)
        rng, state, bank, carried, single = np.random.default_rng(bench.seed), None, exact.initial_bank(), [], []
        for c in range(count):
            ids = rng.integers(0, config.vocab_size, 5 if bench.toy else config.memory.chunk)
            same = backend.from_host(bank.float().numpy(), c * len(ids))
            state, same, bank = _fed(backend, state, ids)[1], _fed(backend, same, ids)[1], _exact(exact, bank, ids, c * len(ids))[1]
            carried.append(_nmse(backend.to_host(state), bank.numpy()))
            single.append(_nmse(backend.to_host(same), bank.numpy()))
        out.rows.append([config.name, name, str(count), f"{max(single):.2g}", f"{carried[-1]:.2g}", f"{max(carried):.2g}"])
        gate = GATES[name].bank or 0
        for what, found in (("each from the same bank", max(single)), ("carried", max(carried))):
            out.judged.append((f"bank over {count} chunks, {what}, {name}", f"NMSE {found:.2g}", f"<= {gate:g}", found <= gate))
    return out
