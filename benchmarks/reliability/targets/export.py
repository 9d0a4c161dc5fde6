"""An exported folder on the onnx backend. Right means: as long as the files are those of its record, the logits of the export as it was made; a graph
changed together with its record may compute something else, but only finite numbers of the right shape."""

import json
import shutil
from pathlib import Path
from random import Random

import kit
import numpy as np
import oracle_config
import tiny_model
from mutate import mutate_bytes, mutate_json, mutate_packed, mutate_value, pack, unpack

from lm2.export.export import export_model
from lm2.export.options import Options
from lm2.models.errors import LM2Error
from lm2.runtime.backend import BackendOptions
from lm2.runtime.backends.onnx_backend import open_model
from lm2.runtime.loading import load

from . import Target

IDS = [5, 6, 7, 200, 1]
SHARES = {"config.json": 6.0, "model.onnx": 2.0, "model.onnx.data": 0.5, "checked.json": 1.0, "tokenizer.json": 0.2, "generation_config.json": 0.5,
          "chat_template.jinja": 0.2}  # fmt: skip


def target(place: Path) -> Target:
    model = tiny_model.make(place / "model", chunk=16)
    seeds, right = [], []
    forms = ((Options(), 1 << 30), (Options(plain=True, portable=True, opset=23), 1 << 30), (Options(), 1))
    for i, (options, inline) in enumerate(forms):
        export_model(model, place / f"export{i}", options, inline_max=inline)
        seeds.append(pack({f.name: f.read_bytes() for f in sorted((place / f"export{i}").iterdir())}))
        right.append(_logits(place / f"export{i}"))
    graphs = {unpack(seed)["model.onnx"]: values for seed, values in zip(seeds, right, strict=True)}
    data = {unpack(seed).get("model.onnx.data", b"") for seed in seeds}
    folder = place / "folder"
    config = json.loads((place / "export0" / "config.json").read_text())

    def check(body: bytes) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            files = unpack(body)
        except (ValueError, TypeError):
            return "no folder"
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            logits = _logits(folder)
        except LM2Error as error:
            return kit.check_refusal(error) + f": {error}"
        want = graphs.get(files.get("model.onnx", b""))
        if want is not None and files.get("model.onnx.data", b"") in data:
            kit.need(np.array_equal(logits, want), "other logits from the same files")
        kit.need(logits.shape[-1] == config["vocab_size"], f"logits of shape {logits.shape}")
        try:
            said = oracle_config.lm2(json.loads(files["config.json"]))
        except oracle_config.Bad as bad:
            raise kit.Wrong(f"opened with {bad}") from None
        for key, value in oracle_config.lm2(config).items():
            kit.need(said[key] == value, f"opened with {key} {said[key]!r}")
        try:
            load(folder, threads=1)
        except LM2Error as error:
            kit.check_refusal(error)
        return ""

    return Target("export", seeds, mutate, check)


def _logits(folder: Path) -> np.ndarray:
    backend = open_model(folder, BackendOptions(device="cpu", threads=1))
    logits, chunk = backend.extend(IDS, backend.start(), all_logits=True)
    backend.commit(chunk)
    return logits


def mutate(rng: Random, data: bytes) -> bytes:
    out = mutate_packed(rng, data, {n: mutate_json for n in SHARES if n.endswith(".json")} | {"model.onnx": _mutate_graph}, SHARES)
    if rng.random() < 0.7:
        return out
    files = unpack(out)  # the record made to fit, as a tool would
    try:
        fields = json.loads(files["config.json"])
        for name, entry in fields["onnx"]["files"].items():
            import hashlib

            entry |= {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        files["config.json"] = json.dumps(fields).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return pack(files)


def _mutate_graph(rng: Random, data: bytes) -> bytes:
    """Bytes, or a node, an attribute, a shape, a name or a property of the graph."""
    import onnx

    if rng.random() < 0.3:
        return mutate_bytes(rng, data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        graph = model.graph
        kind = rng.randrange(8)
        node = rng.choice(graph.node)
        if kind == 0:
            node.op_type = rng.choice(graph.node).op_type
        elif kind == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(rng.choice(graph.node).output)
        elif kind == 2 and node.attribute:
            node.attribute[0].i = rng.choice((0, -1, 1, 7, 2**31, 2**62))
        elif kind == 3:
            graph.node.remove(node)
        elif kind == 4:
            tensor = rng.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, -1, 3, 2**31, 2**40))
        elif kind == 5:
            prop = rng.choice(model.metadata_props)
            prop.value = rng.choice((prop.value[:-1], "", "{}", "null", "[1]", mutate_json(rng, prop.value.encode()).decode("utf-8", "replace")))
        elif kind == 6:
            value = rng.choice((*graph.input, *graph.output))
            dims = value.type.tensor_type.shape.dim
            if dims:
                rng.choice(dims).dim_value = abs(int(mutate_value(rng, 3) or 0)) if rng.random() < 0.5 else rng.choice((0, 1, 2, 17, 2**40))
            if rng.random() < 0.3:
                value.type.tensor_type.elem_type = rng.choice((1, 7, 10, 6))
        else:
            model.opset_import[0].version = rng.choice((1, 13, 18, 23, 24, 99))
        return bytes(model.SerializeToString())
    except Exception:
        return mutate_bytes(rng, data)
