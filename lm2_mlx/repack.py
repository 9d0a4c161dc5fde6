"""A GGUF's quantised matrices as they are, in MLX's layout: the same numbers as the model folder made from that GGUF, none rounded twice.

Knows where a GGUF keeps what and llama.cpp's row order of q and k; the blocks themselves are packing.py's.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..models.checkpoints.gguf_file import EXACT, architecture_of, open_gguf
from ..models.checkpoints.gguf_header import GGUFTensor, read_gguf
from ..models.errors import ConvertError
from ..models.layout import ModelFolder, open_folder, tensor_shapes
from ..models.oserrors import shown
from ..models.quantized import may_be_packed
from ..models.tensorfile import read_tensor, to_float32
from .packing import GGUF_GROUP, REPACKABLE, Packed, from_gguf, two_valued
from .quantize import Progress, write_packed


def repack_gguf(gguf: Path, src: Path, dst: Path, progress: Progress | None = None, name: str | None = None) -> dict[str, Any]:
    """Write model folder `src`, which was made from `gguf`, as packed folder `dst` with the GGUF's own numbers.

    A memory's matrices that are still the warm start's are packed with it: copies of the backbone's, also times a power of two, and a content
    matrix with two numbers to a group. Everything else stays as it is in `src`.
    Raises ConvertError when a matrix's type has no such layout, or when `src` does not hold exactly the GGUF's values; else as quantize_folder.
    """
    tensors = quantised_matrices(gguf)
    folder = open_folder(src)
    config = folder.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def read(name: str) -> Packed:
        tensor = tensors[name]
        with open(gguf, "rb") as f:
            f.seek(tensor.begin)
            raw = f.read(tensor.nbytes)
        p = from_gguf(raw, tensor.kind, tensor.shape[0])
        count = heads.get(name.split(".")[-2], 0)
        return p.rows(_order(tensor.shape[0], count)) if count else p

    def candidate(name: str, values: np.ndarray) -> Packed | None:
        """The packed numbers that a matrix of these float32 values (o, i) may consist of, or None."""
        if name in tensors:
            return read(name)
        if name.endswith(".memory.content.weight"):
            return two_valued(values)
        origin = name.replace(".memory.", ".self_attn.")
        if ".memory." not in name or origin not in tensors:
            return None
        p = read(origin)
        if name.split(".")[-2] in ("k_proj", "v_proj"):
            rows = np.arange(len(p.weight)).reshape(config.num_key_value_heads, -1)  # (k, e)
            p = p.rows(np.repeat(rows, config.num_attention_heads // config.num_key_value_heads, axis=0).reshape(-1))
        factor = _largest(values) / (_largest(p.values()) or 1.0)
        return p.times(factor) if factor and math.frexp(factor)[0] == 0.5 else p

    def packed(name: str, values: np.ndarray) -> Packed:
        p = candidate(name, values)
        assert p is not None
        return p

    chosen = _chosen(folder, candidate, gguf, set(tensors))
    return write_packed(folder, dst, chosen, packed, "repacked", progress, name, {"repacked_from": shown(gguf.name)})


def _chosen(
    folder: ModelFolder, candidate: Callable[[str, np.ndarray], Packed | None], gguf: Path, must: set[str]
) -> dict[str, tuple[int, int]]:
    chosen: dict[str, tuple[int, int]] = {}
    with open(folder.weights, "rb") as f:
        for name, shape in tensor_shapes(folder.config).items():
            if not may_be_packed(name):
                continue
            info = folder.header.tensors[name]
            values = to_float32(read_tensor(f, info), info.dtype)
            p = candidate(name, values)
            if p is None:
                continue
            if p.scales.shape == (shape[0], shape[1] // GGUF_GROUP) and np.array_equal(p.values(), values):
                chosen[name] = (p.bits, p.group)
            elif name in must:
                raise ConvertError(
                    f"{folder.weights}: tensor {name} does not hold the values of {gguf}: convert it with --dtype auto, or pack the folder with --bits"
                )
    return chosen


def quantised_matrices(gguf: Path) -> dict[str, GGUFTensor]:
    """The GGUF's quantised matrices by their Hugging Face names. Raises ConvertError for one that MLX's groups cannot hold."""
    header = read_gguf(gguf)
    kind = architecture_of(header, gguf).name
    if kind != "llama":  # what is folded into its weights is not in the file's numbers
        raise ConvertError(
            f"{gguf}: a GGUF of architecture {kind} cannot keep its own numbers: make a model folder with `lm2 convert {gguf} FOLDER`, "
            "then `lm2 convert FOLDER DST --mlx --bits 4`"
        )
    names = list(open_gguf(gguf).tensors)
    listed = [t for t in header.tensors.values() if t.name != "rope_freqs.weight"]
    out = {}
    for name, tensor in zip(names, listed, strict=True):
        if tensor.kind in REPACKABLE and len(tensor.shape) == 2:
            out[name] = tensor
        elif tensor.kind not in EXACT:
            raise ConvertError(
                f"{gguf}: tensor {tensor.name} has type {tensor.kind}, which MLX cannot hold unrounded (it can hold {', '.join(REPACKABLE)}): "
                f"make a model folder with `lm2 convert {gguf} FOLDER`, then `lm2 convert FOLDER DST --mlx --bits 4`"
            )
    if not out:
        raise ConvertError(f"{gguf} has no quantised matrix: make a model folder of it first, then `lm2 convert FOLDER DST --mlx --bits 4`")
    return out


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _order(rows: int, heads: int) -> np.ndarray:
    """Rows in Hugging Face's order (first halves, then second halves of a head) from llama.cpp's (pairs side by side)."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
