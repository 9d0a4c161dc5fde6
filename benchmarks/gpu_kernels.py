"""Sections of benchmarks/gpu.py about single kernels: against float64 on fresh inputs, the bandwidth of a copy, the gated update beside it."""

import torch
from gpu_bench import Bench, Section, gbps, ms


def check(bench: Bench) -> Section:
    """Every operator in every dtype against its plain form in float64 on the CPU; inputs are the tests' (awkward shapes, poisoned buffers), newly drawn."""
    import kernel_kit as kit

    from lm2.models.kernels import attention, gated, norm, released, rotary, stream, update
    from lm2.models.update import gated_memory_update as plain

    seed, out = bench.seed, Section(["operator", "dtype", "cases", "largest difference", "of its gate"])
    shapes = [*kit.WIDTHS[1 if bench.toy else 0 :], *([] if bench.toy else [(4, 33, 576), (2, 7, 2048)])]
    heads = [
        *kit.HEADS[1 : 2 if bench.toy else 4],
        *([] if bench.toy else [(8, 9, 3, 512, 64), (2, 32, 32, 2048, 64), (64, 32, 8, 2048, 64)]),
    ]
    for dtype in kit.DTYPES:
        cases = {
            "gated_memory_update": (update.update, plain, [kit.update_args(s, dtype, seed) for s in shapes]),
            "rms_norm": (norm.rms_norm, norm.plain_rms_norm, [kit.norm_args(s, dtype, dtype, seed) for s in shapes]),
            "gated_memory_finish": (gated.gated_memory_finish, gated.plain_finish, [kit.finish_args(s, dtype, True, seed) for s in shapes]),
            "gated_memory_step": (gated.gated_memory_step, gated.plain_step, [kit.step_args(s, dtype, True, seed) for s in shapes]),
            "decode_attention": (
                attention.decode_attention, attention.plain_attention, [kit.attention_args(s, dtype, l, seed) for s in heads for l in (True, False)],
            ),
            "decode_attention in a window": (
                attention.decode_attention, attention.plain_attention,
                [(*kit.attention_args(s, dtype, True, seed, w), None, w) for s in heads for w in (1, 65, 300)],
            ),
            "rotate_store": (rotary.rotate_store, rotary.plain_rotate_store, [kit.rotary_args(s, dtype, seed) for s in heads]),
            "released_memory_pool": (stream.released_pool, stream.plain_pool, [kit.pool_args(s, dtype, seed) for s in shapes]),
            "store_heads": (stream.store_heads, stream.plain_store, [kit.store_args(s, dtype, seed) for s in heads]),
            "released_memory_open": (released.released_open, released.plain_open, [kit.open_args(s, dtype, seed) for s in shapes]),
            "released_memory_close": (released.released_close, released.plain_close, [kit.close_args(s, one, seed) for s in shapes for one in (True, False)]),
        }  # fmt: skip
        for name, (op, form, inputs) in cases.items():
            worst = share = 0.0
            for args in inputs:
                here = [a.to(bench.device) if isinstance(a, torch.Tensor) else a for a in args]
                wide = [a.nan_to_num() if name.startswith("decode_attention") and isinstance(a, torch.Tensor) else a for a in kit.exact(args)]
                made = [
                    (op(*here), form(*wide)),
                    *((h, w) for h, w in zip(here, wide, strict=True) if name.endswith(("step", "store", "pool", "heads"))),
                ]
                pairs = [p for got, want in made for p in (zip(got, want, strict=True) if isinstance(got, tuple) else ((got, want),))]
                for got, want in pairs:
                    if not isinstance(got, torch.Tensor) or not got.is_floating_point():
                        continue
                    got, gate = got.cpu().double(), kit.GATES[dtype]
                    if not torch.equal(got.isnan(), want.isnan()):
                        worst = share = float("inf")
                    diff = (got - want).abs().nan_to_num()
                    worst = max(worst, float(diff.max()))
                    share = max(share, float((diff / (gate[0] + gate[1] * want.abs().nan_to_num())).max()))
            out.rows.append([f"lm2::{name}", str(dtype).removeprefix("torch."), str(len(inputs)), f"{worst:.2g}", f"{share:.2f}"])
            if not share <= 1:
                out.judged.append((f"lm2::{name} {dtype} against float64", f"{share:.2f} of its gate", "<= 1", False))
    if not out.judged:
        out.judged.append(("every kernel against float64, forward, all dtypes", "all within", "atol / rtol by dtype", True))
    _gradients(bench, out)
    return out


def _gradients(bench: Bench, out: Section) -> None:
    import kernel_kit as kit

    from lm2.models.kernels.update import update
    from lm2.models.update import gated_memory_update as plain

    for dtype in kit.DTYPES:
        args, g, grads = kit.update_args((3, 5, 130), dtype, bench.seed), kit.drawer(bench.seed + 1)((3, 5, 130), dtype), []
        for function, given, seed in (
            (update, [a.to(bench.device) for a in args], g.to(bench.device)),
            (plain, kit.exact(args), g.double()),
        ):
            leaves = [a.detach().clone().requires_grad_() for a in given]
            grads.append(torch.autograd.grad(function(*leaves), leaves, seed))
        atol, rtol = kit.GATES[dtype]
        share = max(float(((x.cpu().double() - w).abs() / (atol + rtol * w.abs())).max()) for x, w in zip(*grads, strict=True))
        out.judged.append((f"gradient of gated_memory_update, {dtype}", f"{share:.2f} of its gate", "<= 1", share <= 1))


def copy(bench: Bench) -> Section:
    """A large copy from device to device: the bandwidth everything else is held against. Reads and writes are both counted."""
    out = Section(["copied", "ms", "GB/s"])
    size = 1 << 20 if bench.toy else 4 << 30
    a = torch.zeros(size // 4, device=bench.device)
    b = torch.empty_like(a)
    t = bench.seconds(lambda: b.copy_(a))
    out.rows.append([f"{size / 2**20:.0f} MiB", ms(t), gbps(2 * size, t)])
    out.facts["copy_bytes_per_second"] = 2 * size / t
    return out


def update(bench: Bench) -> Section:
    """The gated update at 2048 x 2048 x batch 16, forward and backward, kernel and plain PyTorch; each with the bytes it must move."""
    from lm2.models.kernels.update import update as op
    from lm2.models.kernels.update import update_backward
    from lm2.models.update import gated_memory_update as plain

    copied = bench.facts["copy_bytes_per_second"]
    out = Section(["gated_memory_update", "dtype", "bytes that must move", "floor, ms", "ms", "GB/s", "of the copy"])
    shape = (2, 3, 64) if bench.toy else (16, 2048, 2048)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        g = bench.generator()
        i, f, z, old, grad = (torch.randn(shape, generator=g, device=bench.device, dtype=dtype) for _ in range(5))
        one = i.numel() * i.element_size()
        for name, run, count in (
            ("forward", lambda i=i, f=f, z=z, old=old: op(i, f, z, old), 5 * one),
            ("backward", lambda i=i, f=f, z=z, old=old, grad=grad: update_backward(grad, i, f, z, old), 9 * one),
            ("forward, plain PyTorch", lambda i=i, f=f, z=z, old=old: plain(i, f, z, old), 5 * one),
        ):
            t = bench.seconds(run)
            share = count / t / copied
            out.rows.append(
                [
                    name,
                    str(dtype).removeprefix("torch."),
                    f"{count / 1e6:.1f} MB",
                    ms(count / copied),
                    ms(t),
                    gbps(count, t),
                    f"{share * 100:.0f}%",
                ]
            )
            if name == "forward" and dtype == torch.bfloat16:
                bench.judge(
                    out, f"gated update, {' x '.join(map(str, shape))}, bf16", f"{share * 100:.0f}% of the copy", ">= 80%", share >= 0.8
                )
        del i, f, z, old, grad
        bench.free()
    return out
