"""Sections of benchmarks/gpu.py about whole models: decode, prefill, and torch.compile beside the kernels."""

import time

import torch
from gpu_bench import Bench, Section, Skipped, ms
from gpu_floors import published, smollm2, step_bytes, toy, without_memory

BATCHES = (1, 8, 64)


def _shapes(bench):
    return (toy(smollm2()), toy(published("released"))) if bench.toy else (smollm2(), published("released"), published("gated"))


def _decode(bench, config, batch, beside=True):
    """Seconds of a step on the device, and of a step with a likeliest token read back and fed, at the middle of a chunk; bytes of everything held."""
    from lm2.runtime.backends.torch_static import StaticDecoder

    model = bench.model(config, torch.bfloat16)
    half = config.memory.chunk // 2
    with torch.inference_mode():
        decoder = StaticDecoder(model, beside)
        chunk = decoder.start(bench.bank(model, batch), config.memory.chunk)
        ids = torch.randint(0, config.vocab_size, (batch, 3 if bench.toy else half), generator=bench.generator("cpu"))
        _, chunk = decoder.extend(ids, chunk, False)
        logits, after = decoder.extend(ids[:, :1], chunk, False)
        assert torch.isfinite(logits).all()
        device = bench.seconds(lambda: decoder.step(after.lease.slot), 10, 1 if bench.toy else 20)
        steps = 1 if bench.toy else min(100, half)
        for _ in range(1 if bench.toy else 2):  # the second counts
            bench.sync()
            t, at, out = time.perf_counter(), chunk, logits
            for _ in range(steps):
                out, at = decoder.extend(out[:, 0].argmax(-1, keepdim=True).cpu(), at, False)
            bench.sync()
            host = (time.perf_counter() - t) / steps
        held = sum(x.numel() * x.element_size() for x in after.lease.slot.buffers)
    return device, host, held


def decode(bench: Bench) -> Section:
    """ms per token and tokens/s, memory on and off, beside what the bytes alone would take at the copy's bandwidth."""
    out = Section(
        [
            "bf16 decode, mid-chunk",
            "batch",
            "memory",
            "MB that must move",
            "floor, ms",
            "ms/step",
            "of the limit",
            "ms/step with sampling",
            "tokens/s",
            "on / off",
        ]
    )
    copied, measured = bench.facts["copy_bytes_per_second"], {}
    for config in _shapes(bench):
        for batch in (1,) if bench.toy else BATCHES:
            off = None
            for memory in ("off", "on"):
                c = config if memory == "on" else without_memory(config)
                count = step_bytes(c, batch, c.memory.chunk // 2)
                row = [config.name, str(batch), memory, f"{count / 1e6:.1f}", ms(count / copied)]
                bench.free()
                try:
                    device, host, held = _decode(bench, c, batch)
                except torch.cuda.OutOfMemoryError:
                    out.rows.append([*row, "out of memory", "", "", "", ""])
                    continue
                off = device if memory == "off" else off
                ratio = f"{device / off:.3f}" if memory == "on" and off else ""
                out.rows.append([*row, ms(device), f"{count / copied / device * 100:.0f}%", ms(host), f"{batch / host:.0f}", ratio])
                measured[config.name, batch, memory] = device, count, held
    for (name, batch, memory), (device, count, _) in measured.items():
        if batch == 1 and memory == "on" and name.startswith("LM2"):
            share = count / copied / device
            bench.judge(out, f"{name}, bf16 decode, batch 1", f"{share * 100:.0f}% of the bandwidth limit", ">= 60%", share >= 0.6)
        if batch == 1 and memory == "on" and name.startswith("SmolLM2"):
            ratio = device / measured[name, batch, "off"][0]
            bench.judge(out, f"{name}, memory on against off, batch 1", f"{(ratio - 1) * 100:+.1f}%", "<= +15%", ratio <= 1.15)
    small = toy(smollm2()) if bench.toy else smollm2()
    bench.free()
    alone = _decode(bench, small, 1, beside=False)[0]
    out.notes.append(f"{small.name}, batch 1, memory on, read on the main stream instead of a second one: {ms(alone)} ms/step")
    return out


def prefill(bench: Bench) -> Section:
    """A whole chunk in one call, memory written."""
    out = Section(["bf16 prefill of one chunk", "batch", "tokens", "memory", "ms", "tokens/s"])
    for config in _shapes(bench):
        for memory in ("on", "off"):
            c = config if memory == "on" else without_memory(config)
            bench.free()
            model = bench.model(c, torch.bfloat16)
            tables = model.tables()
            for batch in (1,) if bench.toy else (1, 8):
                length = 4 if bench.toy else c.memory.chunk
                ids = torch.randint(0, c.vocab_size, (batch, length), generator=bench.generator("cpu")).to(bench.device)
                try:
                    with torch.inference_mode():
                        bank = bench.bank(model, batch)
                        t = bench.seconds(lambda m=model, b=bank, i=ids, tb=tables: m.extend(i, m.start(b, m.config.memory.chunk), tb), 5)
                except torch.cuda.OutOfMemoryError:
                    out.rows.append([c.name, str(batch), str(length), memory, "out of memory", ""])
                    continue
                out.rows.append([c.name, str(batch), str(length), memory, ms(t), f"{batch * length / t:.0f}"])
            del model
    return out


def compiled(bench: Bench) -> Section:
    """The same step through torch.compile: without the kernels (plain PyTorch, compiled) and with them, captured in a graph like the others."""
    import os

    from lm2.models import decode as steps

    if not bench.cuda and not bench.toy:
        raise Skipped("needs a CUDA device")
    out = Section(["SmolLM2's shape, batch 1, memory on", "ms/step"])
    config = toy(smollm2()) if bench.toy else smollm2()
    model = bench.model(config, torch.bfloat16)
    tables = model.tables()
    before = os.environ.get("LM2_KERNELS")
    try:
        for kernels in ("auto", "reference"):
            os.environ["LM2_KERNELS"] = kernels
            torch._dynamo.reset()
            with torch.no_grad():
                buffers = steps.new_buffers(model, 1)
                steps.begin(model, buffers, bench.bank(model, 1), config.memory.chunk)
                run = torch.compile(steps.step, backend="eager" if bench.toy else "inductor", mode=None)
                for _ in range(3):
                    run(model, buffers, tables)
                if bench.cuda:
                    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):
                        run(model, buffers, tables)
                    torch.cuda.current_stream().wait_stream(stream)
                    with torch.cuda.graph(graph):
                        run(model, buffers, tables)
                    t = bench.seconds(graph.replay, 10, 20)
                else:
                    t = bench.seconds(lambda r=run, b=buffers: r(model, b, tables))
            out.rows.append([f"compiled, LM2_KERNELS={kernels}", ms(t)])
    finally:
        os.environ.pop("LM2_KERNELS", None)
        if before is not None:
            os.environ["LM2_KERNELS"] = before
    return out
