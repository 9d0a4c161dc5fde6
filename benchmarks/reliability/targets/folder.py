"""A Hugging Face Llama folder through `lm2 convert`. Right means: every weight bit for bit the library's, every field the strict reading's, the
same logits from transformers' own Llama with both configs, and a folder that opens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import kit
import numpy as np
import oracle_config
import sources
import tiny_tokenizer
from mutate import mutate_bytes, mutate_json, mutate_packed, mutate_tensors, pack, unpack

from lm2.models.checkpoints.convert import convert
from lm2.models.errors import LM2Error
from lm2.models.layout import open_folder
from lm2.models.tensorfile import to_float32

from . import Target

SIZE = dict(vocab=tiny_tokenizer.VOCAB, hidden=32, ffn=48, layers=2)
SHARES = {"config.json": 5.0, "generation_config.json": 1.0, "model.safetensors.index.json": 1.5, "model.safetensors": 2.0, "a.safetensors": 0.7,
          "b.safetensors": 0.7, "chat_template.jinja": 0.2}  # fmt: skip
IDS = np.arange(12)[None] + 40


def target(place: Path) -> Target:
    import torch

    torch.set_num_threads(1)
    kinds: list[dict[str, Any]] = [{}, {"tied": False, "attention_bias": True}, {"head_dim": 16, "heads": 2, "kv": 1}]
    seeds = [_files(sources.save_hf(sources.llama(**{**SIZE, **kind}), tiny_tokenizer.make(place / str(i)))) for i, kind in enumerate(kinds)]
    seeds.append(_sharded(seeds[1]))
    old = dict(unpack(seeds[0]))
    fields = json.loads(old["config.json"])
    fields.pop("rope_parameters")
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    seeds.append(pack(old | {"config.json": json.dumps(fields | {"rope_theta": 500.0, "rope_scaling": llama3, "torch_dtype": "float32"}).encode()}))
    source, made = place / "source", place / "made"
    computed: dict[str, bool] = {}

    def check(data: bytes) -> str:
        for folder in (source, made):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        try:
            files = unpack(data)
        except (ValueError, TypeError):
            return "no folder"
        for name, body in files.items():
            (source / name).write_bytes(body)
        try:
            convert(source, made)
        except LM2Error as error:
            kit.need(not made.exists(), "refused, and the folder is there")
            return kit.check_refusal(error) + f": {error}"
        kit.need(not list(place.glob(".*")), "leftovers")
        check_fields(files, made)
        check_weights(files, made)
        key = files["config.json"].decode("utf-8", "replace")
        if key not in computed and len(computed) < 4000:
            computed[key] = True
            check_logits(source, made)
        return ""

    return Target("folder", seeds, mutate, check)


def mutate(rng: Random, data: bytes) -> bytes:
    names: dict[str, Callable[[Random, bytes], bytes]] = {n: mutate_json if n.endswith(".json") else mutate_tensors for n in SHARES}
    return mutate_packed(rng, data, names | {"chat_template.jinja": mutate_bytes}, SHARES)


def check_fields(files: dict[str, bytes], made: Path) -> None:
    """The made config against the strict reading of the given one."""
    d = json.loads(files["config.json"])
    try:
        want = oracle_config.llama(d)
    except oracle_config.Bad as bad:
        raise kit.Wrong(f"converted with {bad}") from None
    config = open_folder(made).config
    problem = oracle_config.compare(config, want)
    kit.need(not problem, problem)
    generation = json.loads(files["generation_config.json"]) if "generation_config.json" in files else {}
    for given in (d.get("eos_token_id"), generation.get("eos_token_id")):
        for i in given if isinstance(given, list) else [given]:
            kit.need(i is None or i in config.eos_token_id, f"end token {i} is lost")


def check_weights(files: dict[str, bytes], made: Path) -> None:
    """Every backbone weight as the safetensors library reads it from the source; finite."""
    import safetensors

    have, _ = sources.read_folder(made)
    numpy = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
    for file, body in files.items():
        if not file.endswith(".safetensors") or (file == "model.safetensors" and "model.safetensors.index.json" in files):
            continue
        for name, entry in safetensors.deserialize(body):
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in have):
                continue
            kit.need(name in have, f"tensor {name} is lost")
            value = np.frombuffer(bytes(entry["data"]), numpy[entry["dtype"]]).reshape(entry["shape"])
            want = to_float32(value, entry["dtype"]).astype(np.float32)
            kit.need(have[name].shape == want.shape and np.array_equal(have[name], want), f"tensor {name} has other values")
    kit.need(all(np.isfinite(v).all() for v in have.values()), "a weight that is not finite")


def check_logits(source: Path, made: Path) -> None:
    """transformers' Llama on the source folder against lm2's own model on the made one; a folder transformers refuses says nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    from lm2.models.weights import load_model

    try:
        with torch.no_grad():
            want = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()(torch.as_tensor(IDS)).logits.numpy()
    except Exception:
        return
    if not np.isfinite(want).all():
        return
    folder = open_folder(made)
    model = load_model(folder)
    size = min(IDS.shape[1], folder.config.memory.chunk)
    with torch.no_grad():
        have = model(torch.as_tensor(IDS[:, :size]), model.initial_bank(1), 0)[0].numpy()
    worst = float(np.abs(have - want[:, :size]).max())
    kit.need(worst <= 2e-3 * max(1.0, float(np.abs(want).max())), f"logits differ from transformers by {worst:.3g} of {np.abs(want).max():.3g}")


def _files(folder: Path) -> bytes:
    return pack({f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file()})


def _sharded(data: bytes) -> bytes:
    """The same checkpoint in two files with an index."""
    from safetensors.numpy import load, save

    files = unpack(data)
    tensors = load(files.pop("model.safetensors"))
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, part in shards.items() for n in part}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return pack(files | {file: save({n: tensors[n] for n in part}, {"format": "pt"}) for file, part in shards.items()})
