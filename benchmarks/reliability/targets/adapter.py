"""Memory adapters through `lm2 convert --adapter`. Right means: the memory's weights are the file's bit for bit, its block is the strict reading's."""

import json
import shutil
from pathlib import Path
from random import Random

import kit
import numpy as np
import oracle_config
import sources
from mutate import mutate_json, mutate_packed, mutate_tensors, pack, unpack

from lm2.models.checkpoints.adapter import backbone_key, save_adapter
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.config import LM2Config, MemoryConfig
from lm2.models.errors import LM2Error
from lm2.models.layout import memory_shapes, open_folder
from lm2.models.tensorfile import to_float32

from . import Target

SHARES = {"adapter.json": 1.0, "memory.safetensors": 1.0}


def target(place: Path) -> Target:
    llama = sources.save_hf(sources.llama(hidden=32, ffn=48, layers=3), place / "llama")
    plain = place / "plain"
    convert(llama, plain)
    weights, _ = sources.read_folder(plain)
    seeds = []
    for i, kind in enumerate(("F16", "F32", "BF16")):
        memory = MemoryConfig("gated", 64, 32, (1, 2)[i % 2 :], 4, 8, "zeros", output_projection=True, scale=i == 1, trained=True)
        config = LM2Config(**(vars(open_folder(plain).config) | {"memory": memory}))
        rng = np.random.default_rng(i)
        tensors = {f"model.layers.{at}.memory.{n}": rng.standard_normal(s).astype(np.float32) for at in memory.layers for n, s in memory_shapes(config).items()}
        save_adapter(place / f"adapter{i}", config, backbone_key(config, weights.__getitem__), "llama", tensors, {"command": "lm2 train"}, kind)
        seeds.append(pack({f.name: f.read_bytes() for f in sorted((place / f"adapter{i}").iterdir())}))
    adapter, made = place / "adapter", place / "made"

    def check(data: bytes) -> str:
        for folder in (adapter, made):
            shutil.rmtree(folder, ignore_errors=True)
        adapter.mkdir()
        try:
            files = unpack(data)
        except (ValueError, TypeError):
            return "no folder"
        for name, body in files.items():
            (adapter / name).write_bytes(body)
        try:
            convert(llama, made, MemoryRequest(adapter=adapter))
        except LM2Error as error:
            kit.need(not made.exists(), "refused, and the folder is there")
            return kit.check_refusal(error) + f": {error}"
        _check(files, made)
        return ""

    return Target("adapter", seeds, mutate, check)


def mutate(rng: Random, data: bytes) -> bytes:
    return mutate_packed(rng, data, {"adapter.json": mutate_json, "memory.safetensors": mutate_tensors}, SHARES)


def _check(files: dict[str, bytes], made: Path) -> None:
    import safetensors

    block = json.loads(files["adapter.json"])["memory"]
    try:
        want = oracle_config.memory(block)
    except oracle_config.Bad as bad:
        raise kit.Wrong(f"converted with {bad}") from None
    problem = oracle_config.compare(open_folder(made).config.memory, want)
    kit.need(not problem, f"memory.{problem}")
    have, _ = sources.read_folder(made)
    entries = safetensors.deserialize(files["memory.safetensors"])
    kit.equal("memory tensors", {n for n in have if ".memory." in n}, {n for n, _ in entries})
    for name, entry in entries:
        kind = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}.get(entry["dtype"])
        kit.need(kind is not None, f"tensor {name} is {entry['dtype']}, and was converted")
        value = to_float32(np.frombuffer(bytes(entry["data"]), kind).reshape(entry["shape"]), entry["dtype"])
        kit.need(np.array_equal(have[name], value) and np.isfinite(value).all(), f"tensor {name} has other values, or some that are not finite")
