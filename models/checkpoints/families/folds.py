"""Tensors made of a checkpoint's own by what changes no result: rows in another order, some of the rows, a factor, zeros.

Knows row blocks of SourceTensors, no family. Nothing is held whole. A factor that is a power of two keeps the tensor's dtype, any other makes float32 of it:
what is folded is not rounded. Axes: e width of a head, r rows.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ...errors import ConvertError
from ...tensorfile import from_float32, to_float32
from ..source import SourceTensor
from .family import Tensors

QUERIES, KEYS = r"model\.layers\.\d+\.self_attn\.q_proj\.(weight|bias)", r"model\.layers\.\d+\.self_attn\.k_proj\.(weight|bias)"


def each(tensors: Tensors, pattern: str, change: Callable[[SourceTensor], SourceTensor]) -> Tensors:
    """`tensors` with `change` made to those whose name matches."""
    return {name: change(t) if re.fullmatch(pattern, name) else t for name, t in tensors.items()}


def renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Parts of layers by other names: old -> new, all at once."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(model\.layers\.\d+\.)([a-z0-9_.]+)\.(weight|bias)", name)
        new = f"{match[1]}{names[match[2]]}.{match[3]}" if match and match[2] in names else name
        if new in out:
            raise ConvertError(f"{tensor.file}: tensor {name} would be {new}, which is there already: the files are not of one model")
        out[new] = replace(tensor, name=new)
    return out


def scaled(tensor: SourceTensor, factor: float) -> SourceTensor:
    """The tensor times `factor`; one that is a power of two but for its last digits is that power."""
    power = 2.0 ** round(math.log2(abs(factor)))
    factor = math.copysign(power, factor) if abs(abs(factor) / power - 1) < 1e-12 else factor
    if factor == 1:
        return tensor
    exact = tensor.dtype == "F64" or (tensor.dtype in ("F32", "BF16") and math.frexp(abs(factor))[0] == 0.5)
    return replace(tensor, dtype=tensor.dtype if exact else "F32", blocks=partial(_scaled, tensor, factor, tensor.dtype if exact else "F32"))


def _scaled(tensor: SourceTensor, factor: float, dtype: str) -> Iterator[np.ndarray]:
    for block in tensor.blocks():
        values = block if tensor.dtype == "F64" else to_float32(block, tensor.dtype)
        values = values * values.dtype.type(factor)
        yield values if dtype == "F64" else from_float32(values, dtype)


def raised(tensor: SourceTensor, by: float) -> SourceTensor:
    """The tensor plus `by`, float32 (float64 stays)."""
    return replace(tensor, dtype="F64" if tensor.dtype == "F64" else "F32", blocks=partial(_raised, tensor, by))


def _raised(tensor: SourceTensor, by: float) -> Iterator[np.ndarray]:
    for block in tensor.blocks():
        values = block if tensor.dtype == "F64" else to_float32(block, tensor.dtype)
        yield values + values.dtype.type(by)


def some_rows(tensor: SourceTensor, name: str, begin: int, end: int) -> SourceTensor:
    """Rows begin .. end - 1 of a tensor as one of its own."""
    return replace(tensor, name=name, shape=(end - begin, *tensor.shape[1:]), blocks=partial(_some_rows, tensor, begin, end))


def _some_rows(tensor: SourceTensor, begin: int, end: int) -> Iterator[np.ndarray]:
    at = 0
    for block in tensor.blocks():
        piece = block[max(0, begin - at) : max(0, end - at)]
        if len(piece):
            yield piece
        at += len(block)
        if at >= end:
            return


def split_rows(tensors: Tensors, joined: str, parts: dict[str, int]) -> Tensors:
    """Each matrix (and bias) `joined` of a layer as `parts`, name -> rows, which lie in it in that order. Raises ConvertError for another count."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"(model\.layers\.\d+\.){re.escape(joined)}\.(weight|bias)", name)
        if not match:
            out[name] = tensor
            continue
        need = sum(parts.values())
        if not tensor.shape or tensor.shape[0] != need:
            raise ConvertError(f"{tensor.file}: tensor {name} is {list(tensor.shape)}, its config calls for {need} rows: they are not of one model")
        begin = 0
        for part, rows in parts.items():
            new = f"{match[1]}{part}.{match[2]}"
            out[new] = some_rows(tensor, new, begin, begin + rows)
            begin += rows
    return out


def reordered(tensor: SourceTensor, order: list[int]) -> SourceTensor:
    """Rows of each head of len(order) in another order: new row i is the old order[i]. A tensor that is not of whole heads stays, to be refused by shape."""
    if not tensor.shape or tensor.shape[0] % len(order) or order == sorted(order):
        return tensor
    return replace(tensor, blocks=partial(_reordered, tensor, order))


def _reordered(tensor: SourceTensor, order: list[int]) -> Iterator[np.ndarray]:
    width, left = len(order), None
    for block in tensor.blocks():
        block = block if left is None else np.concatenate([left, block])
        whole = len(block) // width * width
        left = block[whole:]
        if whole:
            heads = block[:whole].reshape(-1, width, *block.shape[1:])  # (r / e, e, ...)
            yield np.ascontiguousarray(heads[:, order]).reshape(whole, *block.shape[1:])


def interleaved(width: int, turning: int | None = None) -> list[int]:
    """The order that brings a head whose pairs lie side by side, (0, 1), (2, 3), ..., to pairs (i, i + e/2). turning: the dimensions, the first ones,
    that turn at all; the pairs of the others come last."""
    turning = width if turning is None else turning
    rest = (width - turning) // 2
    return [*range(0, turning, 2), *range(turning, turning + rest), *range(1, turning, 2), *range(turning + rest, width)]


def partly_turned(width: int, turning: int) -> list[int]:
    """The order that brings a head whose first `turning` dimensions turn, in pairs (i, i + turning/2), to pairs (i, i + e/2), those that turn first."""
    half, rest = turning // 2, (width - turning) // 2
    first, second = [*range(half), *range(turning, turning + rest)], [*range(half, turning), *range(turning + rest, width)]
    return first + second


def biased(tensors: Tensors, have: tuple[str, ...], lack: tuple[str, ...]) -> Tensors:
    """Zero biases for the attention matrices `lack` of each layer, beside those of `have`. Raises ConvertError for one that is there already."""
    out = dict(tensors)
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(model\.layers\.\d+\.self_attn\.)([a-z_]+)\.(weight|bias)", name)
        if not match or match[2] not in lack:
            continue
        if match[3] == "bias":
            raise ConvertError(f"{tensor.file} has tensor {name} {list(tensor.shape)}, its config does not call for it: they are not of one model")
        beside = tensors.get(f"{match[1]}{have[0]}.bias")
        if beside is not None and tensor.shape:
            out[f"{match[1]}{match[2]}.bias"] = zeros(f"{match[1]}{match[2]}.bias", tensor.shape[0], beside)
    return out


def zeros(name: str, rows: int, like: SourceTensor) -> SourceTensor:
    """A vector of zeros in the dtype, and said to be of the file, of another tensor."""
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}[like.dtype]
    return SourceTensor(name, like.dtype, (rows,), lambda: iter([np.zeros(rows, kind)]), like.file)
