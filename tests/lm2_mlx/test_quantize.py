"""Folders packed for MLX: a GGUF's numbers bit for bit, rounding by divergence, what is refused, and sessions that move."""

import json
import shutil
import subprocess
import sys

import mlx_kit
import numpy as np
import pytest
import sources
import tiny
from compare import assert_close, nmse, relative_l2

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.errors import ConfigError, ConvertError, ModelFileError
from lm2.models.layout import open_folder

mx = pytest.importorskip("mlx.core")
from lm2.lm2_mlx.convert import convert_mlx  # noqa: E402
from lm2.lm2_mlx.packing import from_gguf, pack_bits, two_valued, unpack_bits  # noqa: E402
from lm2.lm2_mlx.quantize import quantize_folder  # noqa: E402
from lm2.lm2_mlx.repack import repack_gguf  # noqa: E402

KINDS = ("Q4_0", "Q4_1", "Q8_0")
REQUEST = MemoryRequest(layers=(1, 2), slots=32)


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_lie_where_mlx_looks_for_them(bits):
    """Integers on the grid itself, scale 1 and bias 0, through MLX's own reader."""
    q = np.random.default_rng(0).integers(0, 2**bits, (5, 64)).astype(np.uint8)
    words = pack_bits(q, bits)
    assert np.array_equal(unpack_bits(words, bits), q)
    one = mx.ones((5, 2))
    assert np.array_equal(np.array(mx.dequantize(mx.array(words), one, mx.zeros((5, 2)), group_size=32, bits=bits)), q)


@pytest.mark.parametrize("kind", KINDS)
def test_any_block_is_exact(kind):
    """Blocks of random bytes (every scale that is finite, subnormal and negative ones included): equal to gguf's float32 in every bit but a zero's sign."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    blocks = np.random.default_rng(1).integers(0, 256, (4000, 2, size)).astype(np.uint8)
    head = np.ascontiguousarray(blocks[..., : 4 if kind == "Q4_1" else 2]).view("<f2")
    head[~np.isfinite(head)] = 0.5
    blocks[..., : head.shape[-1] * 2] = head.view(np.uint8)
    raw = blocks.reshape(4000, -1)
    want = dequantize(raw, GGMLQuantizationType[kind])
    packed = from_gguf(raw.tobytes(), kind, 4000)
    scales, biases = (mx.array(a.astype(np.float32)) for a in (packed.scales, packed.biases))
    got = np.array(mx.dequantize(mx.array(packed.weight), scales, biases, group_size=32, bits=packed.bits))
    assert want.dtype == got.dtype == np.float32
    assert np.array_equal(want + 0.0, got + 0.0) and np.array_equal(packed.values(), got)


def test_numbers_of_a_warm_start_are_packed_unrounded():
    """Two numbers to a group, and a power of two times what is packed already; nothing else is taken."""
    diagonal = np.eye(64, dtype=np.float32) * 0.5
    assert np.array_equal(two_valued(diagonal).values(), diagonal)
    assert np.array_equal(two_valued(diagonal - 0.25).values(), diagonal - 0.25) and not two_valued(np.zeros((2, 32), np.float32)).values().any()
    other = diagonal.copy()
    other[0, 1] = 0.125
    assert two_valued(other) is None and two_valued(diagonal * np.float32(0.1)) is None and two_valued(diagonal[:, :48]) is None
    raw = np.random.default_rng(0).integers(0, 256, (30, 2, 20)).astype(np.uint8)
    head = np.ascontiguousarray(raw[..., :4]).view("<f2")
    head[~np.isfinite(head)] = 0.5
    raw[..., :4] = head.view(np.uint8)
    p = from_gguf(raw.tobytes(), "Q4_1", 30)
    for factor in (1.0, 2.0**-7, 0.5):
        assert np.array_equal(p.times(factor).values(), p.values() * np.float32(factor))
    assert p.times(1.0).scale_code == "F16" and p.times(2.0**-7).scale_code == "F32", "scales that float16 has no bits for"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_is_repacked_unrounded(tmp_path, kind):
    """Every tensor equals the plain folder's, which holds gguf's dequantised values; logits, bank and fingerprint are the plain model's."""
    sources.write_gguf(tmp_path / "m.gguf", sources.llama(tied=False), kind)
    convert(tmp_path / "m.gguf", tmp_path / "plain", REQUEST)
    summary = convert_mlx(tmp_path / "m.gguf", tmp_path / "packed", REQUEST)
    plain, packed = mlx_kit.tensors(tmp_path / "plain"), mlx_kit.tensors(tmp_path / "packed")
    assert plain.keys() == packed.keys()
    for name in plain:
        assert np.array_equal(plain[name], packed[name]), name
    names = open_folder(tmp_path / "packed", quantized=True).header.tensors
    assert ("model.layers.0.mlp.up_proj.biases" in names) == (kind == "Q4_1"), "biases that follow from the scales are left out"
    counts = {q["tensors"]: q["count"] for q in summary["quantized"]}
    assert counts["self_attn.q_proj.weight"] == 3 and counts["memory.k_proj.weight"] == 2 and counts["lm_head.weight"] == 1
    assert not any("gate.weight" in name or "norm" in name for name in counts if "memory" in name)
    assert counts["memory.o_proj.weight"] == counts["memory.content.weight"] == 2, "a multiple by a power of two, and a diagonal"
    assert summary["fingerprint"] == open_folder(tmp_path / "plain").fingerprint != summary["own_fingerprint"]
    a, b = mlx_kit.torch(tmp_path / "plain"), mlx_kit.mlx(tmp_path / "packed")
    state_a, state_b = mlx_kit.written(a), mlx_kit.written(b)
    assert nmse(b.to_host(state_b), a.to_host(state_a)) <= 1e-10
    ids = mlx_kit.tokens(a, 1, 32)
    want = mlx_kit.run(a, ids, state_a)[0]
    for splits in ([], [1, 2, 30]):  # unpacked for the call, and MLX's own quantised product
        assert relative_l2(mlx_kit.run(b, ids, state_b, splits)[0], want) <= 1e-5


def test_repacking_refuses_other_values_and_types(tmp_path):
    sources.write_gguf(tmp_path / "a.gguf", sources.llama(), "Q4_1")
    sources.write_gguf(tmp_path / "b.gguf", sources.llama(seed=1), "Q4_1")
    sources.write_gguf(tmp_path / "c.gguf", sources.llama(), "Q5_0")
    sources.write_gguf(tmp_path / "d.gguf", sources.llama(), "F16")
    convert(tmp_path / "a.gguf", tmp_path / "plain", REQUEST)
    with pytest.raises(ConvertError, match=r"embed_tokens.*does not hold the values of .*b\.gguf"):
        repack_gguf(tmp_path / "b.gguf", tmp_path / "plain", tmp_path / "out")
    with pytest.raises(ConvertError, match="Q5_0"):
        convert_mlx(tmp_path / "c.gguf", tmp_path / "out", REQUEST)
    with pytest.raises(ConvertError, match="no quantised matrix"):
        convert_mlx(tmp_path / "d.gguf", tmp_path / "out", REQUEST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "c.gguf", "d.gguf", "plain"]


def test_a_trained_memory_is_not_repacked(tmp_path):
    """A memory matrix that is no longer a copy of the backbone's stays as it is, and the summary says so."""
    from safetensors.numpy import load_file, save_file

    sources.write_gguf(tmp_path / "m.gguf", sources.llama(), "Q4_1")
    convert(tmp_path / "m.gguf", tmp_path / "plain", REQUEST)
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    weights["model.layers.1.memory.q_proj.weight"] += 0.01
    save_file(weights, tmp_path / "plain" / "model.safetensors")
    summary = repack_gguf(tmp_path / "m.gguf", tmp_path / "plain", tmp_path / "packed")
    assert {"tensors": "memory.q_proj.weight", "count": 1, "why": "not one of the GGUF's own matrices"} in summary["skipped"]
    plain, packed = mlx_kit.tensors(tmp_path / "plain"), mlx_kit.tensors(tmp_path / "packed")
    assert all(np.array_equal(plain[name], packed[name]) for name in plain)


@pytest.mark.parametrize("topics", [(), (0, 1)])
@pytest.mark.parametrize("bits, group, kl, top1", [(8, 32, 1e-4, 0.97), (8, 64, 2e-4, 0.97), (4, 32, 0.03, 0.8)])
def test_rounding(tmp_path, bits, group, kl, top1, topics):
    """Divergence from the model it was made from, and exactness against its own dequantised weights. What topics are made with is never packed."""
    src = _wide(tmp_path / "src", topics)
    quantize_folder(src, tmp_path / "q", bits, group)
    header = open_folder(tmp_path / "q", quantized=True).header.tensors
    assert {t.dtype for n, t in header.items() if ".topics." in n} <= {"F32"} and not any(".topics." in n and n.endswith(".scales") for n in header)
    a, b = mlx_kit.mlx(src), mlx_kit.mlx(tmp_path / "q")
    ids, state_a, state_b = mlx_kit.tokens(a, 8, 32), mlx_kit.written(a, 8), mlx_kit.written(b, 8)
    want, got = mlx_kit.run(a, ids, state_a)[0], mlx_kit.run(b, ids, state_b)[0]
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True) for x in (want, got))
    divergence = float((np.exp(p) * (p - q)).sum(-1).mean())
    agreement = float((want.argmax(-1) == got.argmax(-1)).mean())
    print(f"{bits} bits group {group}: KL {divergence:.2g} gate {kl:g}; top-1 {agreement:.1%} gate {top1:.0%}")
    assert 0 < divergence <= kl and agreement >= top1
    shutil.copytree(src, tmp_path / "own")
    _overwrite(tmp_path / "own", mlx_kit.tensors(tmp_path / "q"))
    own = mlx_kit.mlx(tmp_path / "own")
    assert_close("its own dequantised weights", got, mlx_kit.run(own, ids, mlx_kit.written(own, 8))[0], 1e-3)


def _wide(path, topics=()):
    """A model whose widths all divide by 64."""
    from dataclasses import replace

    from lm2.models.weights import random_model, save_folder

    config = tiny.config(chunk=32, width=64, intermediate_size=128, head_dim=16)
    config = replace(config, memory=replace(config.memory, head_dim=16, **(dict(layers=(2,), topics=topics) if topics else {})))
    save_folder(random_model(config, 1), path)
    return path


def _overwrite(folder, values):
    from safetensors.numpy import save_file

    (folder / "model.safetensors").unlink()
    (folder / "fingerprint.json").unlink(missing_ok=True)
    save_file({n: np.ascontiguousarray(v) for n, v in values.items()}, folder / "model.safetensors")


def test_what_is_refused(tmp_path):
    src = mlx_kit.folder(tmp_path / "src", "gated")
    for args, match in (((3, 32), "--bits 3"), ((4, 48), "--group-size 48"), ((4, 64), r"width 32 of tensor model\.embed_tokens\.weight")):
        with pytest.raises(ConvertError, match=match):
            quantize_folder(src, tmp_path / "q", *args)
    assert not (tmp_path / "q").exists()
    src = _wide(tmp_path / "wide")
    quantize_folder(src, tmp_path / "q", 8, 32)
    with pytest.raises(ConvertError, match="packed already"):
        quantize_folder(tmp_path / "q", tmp_path / "qq", 8, 32)
    with pytest.raises(ModelFileError, match="--backend mlx"):
        mlx_kit.torch(tmp_path / "q")
    with pytest.raises(ModelFileError, match="--backend mlx"):
        open_folder(tmp_path / "q")


@pytest.mark.parametrize("fault, match", [
    ({"bits": 5}, "quantization.bits 5"), ({"group_size": 16}, "quantization.group_size 16"), ({"source_fingerprint": "x"}, "source_fingerprint"),
    ({"bits": 4}, "calls for"), ({"mode": "mxfp4"}, "mode"), ({"symmetric": "x"}, "quantization.symmetric"),
    ({"symmetric": ["model.layers.0.mlp.up_proj"]}, r"has tensor model\.layers\.0\.mlp\.up_proj\.biases"),
])  # fmt: skip
def test_a_damaged_block_is_refused(tmp_path, fault, match):
    quantize_folder(_wide(tmp_path / "src"), tmp_path / "q", 8, 32)
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization"] |= fault
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, ModelFileError), match=match):
        mlx_kit.mlx(tmp_path / "q")


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_a_lost_part_of_a_matrix_is_refused(tmp_path, part):
    """Biases are worked out only where the config says that they follow from the scales."""
    from safetensors.numpy import load_file, save_file

    quantize_folder(_wide(tmp_path / "src"), tmp_path / "q", 8, 32)
    weights = load_file(tmp_path / "q" / "model.safetensors")
    del weights[f"model.layers.0.mlp.up_proj.{part}"]
    save_file(weights, tmp_path / "q" / "model.safetensors")
    with pytest.raises(ModelFileError, match="up_proj"):
        mlx_kit.mlx(tmp_path / "q")


def test_source_and_own_fingerprint(tmp_path):
    """Sessions are bound to the source; a flipped bit in the packed weights shows in the own one."""
    src = _wide(tmp_path / "src")
    quantize_folder(src, tmp_path / "q", 8, 32)
    before = open_folder(tmp_path / "q", quantized=True)
    assert before.fingerprint == open_folder(src).fingerprint
    data = bytearray(before.weights.read_bytes())
    data[-1] ^= 1
    before.weights.write_bytes(data)
    after = open_folder(tmp_path / "q", quantized=True)
    assert after.own_fingerprint != before.own_fingerprint and after.fingerprint == before.fingerprint


def test_a_state_goes_there_and_back(tmp_path):
    """From the plain model on torch to the repacked one on MLX: the same greedy tokens as staying."""
    sources.write_gguf(tmp_path / "m.gguf", sources.llama(), "Q4_0")
    convert(tmp_path / "m.gguf", tmp_path / "plain", REQUEST)
    repack_gguf(tmp_path / "m.gguf", tmp_path / "plain", tmp_path / "packed")
    a, b = mlx_kit.torch(tmp_path / "plain"), mlx_kit.mlx(tmp_path / "packed")
    state = mlx_kit.written(a)
    outs = []
    for backend in (a, b):
        chunk, token, out = backend.start(1, backend.from_host(a.to_host(state), state.written)), 5, []
        for _ in range(20):
            logits, chunk = backend.extend([token], chunk)
            token = int(logits[0].argmax())
            out.append(token)
        outs.append(out)
    assert outs[0] == outs[1]


def test_half_precision_of_packed_weights(tmp_path):
    """What a GPU computes a packed folder in: float16 stays within its gate of float32."""
    src = _wide(tmp_path / "src")
    quantize_folder(src, tmp_path / "q", 8, 32)
    assert open_folder(tmp_path / "q", quantized=True).config.dtype == "float16"
    wide, narrow = mlx_kit.mlx(tmp_path / "q"), mlx_kit.mlx(tmp_path / "q", "float16")
    ids = mlx_kit.tokens(wide, 1, 32)
    assert relative_l2(mlx_kit.run(narrow, ids, mlx_kit.written(narrow))[0], mlx_kit.run(wide, ids, mlx_kit.written(wide))[0]) <= 5e-3


def lm2(*arguments):
    program = [sys.executable, "-c", "from lm2.cli import main; main()"]
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command(tmp_path):
    """A GGUF, a model folder and a Hugging Face folder; what is packed and kept is said; options that do not fit are refused."""
    sources.write_gguf(tmp_path / "m.gguf", sources.llama(), "Q4_1")
    src = sources.save_hf(sources.llama(), tmp_path / "hf")
    done = lm2("convert", tmp_path / "m.gguf", tmp_path / "a", "--mlx")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert "none rounded" in done.stdout and "3 x self_attn.q_proj.weight" in lines["packed to 4 bits in groups of 32"]
    assert "memory.input_gate.weight" in lines["kept (decides what a memory keeps, so not rounded)"]
    assert lm2("convert", tmp_path / "m.gguf", tmp_path / "plain").returncode == 0
    assert open_folder(tmp_path / "a", quantized=True).fingerprint == open_folder(tmp_path / "plain").fingerprint
    for source, dst in ((tmp_path / "plain", "b"), (src, "c")):
        done = lm2("convert", source, tmp_path / dst, "--mlx", "--bits", "8", "--group-size", "32", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["bits"] == 8, done.stderr
        assert mlx_kit.mlx(tmp_path / dst).describe().quantization == "8-bit group 32 (affine)"
    wrong = [
        (["m.gguf", "--mlx", "--bits", "4"], 1, "keeps its own numbers"), (["plain", "--mlx", "--memory-slots", "32"], 1, "is a model already"),
        (["plain", "--bits", "4"], 2, "need --mlx"), (["plain", "--mlx"], 1, "--group-size 64 does not divide the width 96"),
    ]  # fmt: skip
    for (source, *options), code, message in wrong:
        done = lm2("convert", tmp_path / source, tmp_path / "x", *options)
        assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".", "x"))]
