"""A model folder whose matrices are packed for MLX: rounded here, or by whoever hands the packed numbers in (repack.py).

Knows which tensors are packed, how the folder is written and what is recorded; the arithmetic is in packing.py. What a memory writes with
(gates, content, norms) is never rounded. The folder appears whole or not at all.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..models.atomic import folder_name, new_folder, write_file
from ..models.checkpoints.license import carry_on
from ..models.checkpoints.recalls import carry
from ..models.errors import ConvertError
from ..models.layout import (
    CONFIG,
    TEXT_FILES,
    WEIGHTS,
    ModelFolder,
    combine_fingerprint,
    open_folder,
    tensor_shapes,
    write_fingerprint,
)
from ..models.quantized import BITS, GROUPS, KEY, Quantization, may_be_packed, may_be_rounded, packed_shapes
from ..models.tensorfile import TensorWriter, read_tensor, to_float32
from .packing import Packed, round_to

MEMORY_BITS = 8  # what a memory reads with: small, and recall is worth more than its bytes
SOURCE = "source.json"
Progress = Callable[[int], None]


def quantize_folder(
    src: Path, dst: Path, bits: int = 4, group_size: int = 64, progress: Progress | None = None, name: str | None = None
) -> dict[str, Any]:
    """Pack the matrices of model folder `src` into the new folder `dst`: the backbone's and the embedding to `bits`, a memory's to 8.

    `progress` is told the bytes of each source tensor done; `name` is kept in the config, default the destination's. Returns the summary that `lm2 convert --json` prints.
    Raises ConvertError (bits or group size that do not exist, a matrix whose width the group does not divide, nothing to pack),
    ModelFileError, ConfigError or WriteError; `dst` does not exist then.
    """
    if bits not in BITS:
        raise ConvertError(f"--bits {bits} must be one of {', '.join(map(str, BITS))}")
    if group_size not in GROUPS:
        raise ConvertError(f"--group-size {group_size} must be one of {', '.join(map(str, GROUPS))}")
    folder = open_folder(src, quantized=True)
    if folder.quantization is not None:
        raise ConvertError(f"{src} is packed already ({folder.quantization.bits} bits): give the model it was made from")
    chosen: dict[str, tuple[int, int]] = {}
    for tensor, shape in tensor_shapes(folder.config).items():
        if not may_be_rounded(tensor):
            continue
        if shape[1] % group_size:
            fits = ", ".join(str(g) for g in GROUPS if shape[1] % g == 0)
            remedy = f"use --group-size {fits}" if fits else "this model cannot be packed"
            raise ConvertError(f"--group-size {group_size} does not divide the width {shape[1]} of tensor {tensor}: {remedy}")
        chosen[tensor] = (MEMORY_BITS if ".memory." in tensor else bits, group_size)

    def packed(name: str, values: np.ndarray) -> Packed:
        import mlx.core as mx

        own_bits, group = chosen[name]
        with mx.stream(mx.cpu):
            _, scales, biases = mx.quantize(mx.array(values), group_size=group, bits=own_bits)
            return round_to(values, np.array(scales), np.array(biases), own_bits, group)

    return write_packed(folder, dst, chosen, packed, "affine", progress, name)


def write_packed(
    folder: ModelFolder,
    dst: Path,
    chosen: Mapping[str, tuple[int, int]],
    packed: Callable[[str, np.ndarray], Packed],
    method: str,
    progress: Progress | None = None,
    name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `folder` as a packed folder: `packed(name, float32 values)` for the chosen matrices (bits, group), all others as they are."""
    began = time.monotonic()
    if not chosen:
        raise ConvertError(f"{folder.path}: no matrix of this model can be packed, so nothing would be quantised")
    pairs = [pair for tensor, pair in chosen.items() if ".memory." not in tensor]
    usual = max(set(pairs), key=pairs.count)
    others = {tensor.removesuffix(".weight"): pair for tensor, pair in chosen.items() if pair != usual}
    dtype = "float16" if folder.config.dtype in ("float32", "float64") else folder.config.dtype  # what a GPU computes packed weights in
    config = dataclasses.replace(folder.config, name=name or folder_name(dst), dtype=dtype)
    shapes = tensor_shapes(folder.config)
    scale_codes, symmetric = {}, set()
    for tensor, values in _each(folder, chosen):
        p = packed(tensor, values)
        scale_codes[tensor] = p.scale_code
        if p.symmetric:
            symmetric.add(tensor.removesuffix(".weight"))
    quantization = Quantization(*usual, folder.fingerprint, method, others, frozenset(symmetric))

    def parts(tensor: str) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        return packed_shapes(tensor, shapes[tensor], *chosen[tensor], tensor.removesuffix(".weight") in symmetric)

    plan: list[tuple[str, str, tuple[int, ...]]] = []
    for tensor, shape in shapes.items():
        if tensor in chosen:
            plan += [(part, code or scale_codes[tensor], s) for part, (code, s) in parts(tensor).items()]
        else:
            plan.append((tensor, folder.header.tensors[tensor].dtype, shape))
    with new_folder(dst) as out:
        with open(out / WEIGHTS, "wb") as f, open(folder.weights, "rb") as source:
            writer = TensorWriter(f, plan, {"format": "mlx"})
            for tensor in shapes:
                info = folder.header.tensors[tensor]
                if tensor in chosen:
                    p = packed(tensor, to_float32(read_tensor(source, info), info.dtype))
                    for part, array in zip(parts(tensor), (p.weight, p.scales, p.biases), strict=False):
                        writer.write(part, [array])
                else:
                    writer.write(tensor, [read_tensor(source, info)])
                if progress:
                    progress(info.nbytes)
            writer.finish()
        for file in TEXT_FILES:
            if (folder.path / file).is_file():
                shutil.copyfile(folder.path / file, out / file)
        carry(folder.path, out)
        carry_on(folder.path, out)
        _put_json(out / CONFIG, config.to_dict() | {KEY: quantization.to_dict()})
        record = _record(folder.path) | {"packed_for": "mlx", "method": method, "source_fingerprint": folder.fingerprint}
        _put_json(out / SOURCE, record | dict(extra or {}))
        own = combine_fingerprint(config, writer.digests, {part: (code, shape) for part, code, shape in plan})
        write_fingerprint(out, own)
        size = (out / WEIGHTS).stat().st_size
    return {
        "name": config.name,
        "path": str(dst),
        "method": method,
        "dtype": config.dtype,
        "bits": usual[0],
        "group_size": usual[1],
        "quantized": _summary(chosen),
        "skipped": _skipped(shapes, chosen),
        "bytes": size,
        "source_bytes": folder.header.file_bytes,
        "fingerprint": folder.fingerprint,
        "own_fingerprint": own,
        "seconds": round(time.monotonic() - began, 3),
    }


def _each(folder: ModelFolder, names: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    with open(folder.weights, "rb") as f:
        for name in names:
            info = folder.header.tensors[name]
            yield name, to_float32(read_tensor(f, info), info.dtype)


def _summary(chosen: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """What was packed, by kind of matrix: how many, bits, group."""
    counts: dict[tuple[str, int, int], int] = {}
    for name, (bits, group) in chosen.items():
        key = (_kind(name), bits, group)
        counts[key] = counts.get(key, 0) + 1
    return [{"tensors": kind, "count": n, "bits": bits, "group_size": group} for (kind, bits, group), n in counts.items()]


def _skipped(shapes: Mapping[str, tuple[int, ...]], chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stays as it was, by kind of tensor, and why."""
    counts: dict[tuple[str, str], int] = {}
    for name in shapes:
        if name in chosen:
            continue
        if ".memory." in name and "norm" not in name:
            why = "decides what a memory keeps, so not rounded" if not may_be_rounded(name) else "not one of the GGUF's own matrices"
        else:
            why = "norms and biases: small, and sensitive" if not may_be_packed(name) else "not quantised in the GGUF"
        counts[_kind(name), why] = counts.get((_kind(name), why), 0) + 1
    return [{"tensors": kind, "count": n, "why": why} for (kind, why), n in counts.items()]


def _kind(name: str) -> str:
    parts = [p for p in name.removeprefix("model.").split(".") if p != "layers" and not p.isdigit()]
    return ".".join(parts)


def _record(path: Path) -> dict[str, Any]:
    """What the source's own record says, or nothing: it is told on, not relied on."""
    try:
        record = json.loads((path / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _put_json(path: Path, value: Any) -> None:
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    write_file(path, lambda f: f.write(data) and None)
