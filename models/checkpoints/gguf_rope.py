"""Rotary settings from GGUF metadata, including the frequency factors that Llama 3.1 files carry as a tensor.

Knows how llama.cpp writes them: `rope_freqs.weight` holds, for each rotary pair, what its frequency is divided by.
The four numbers of
Hugging Face's `llama3` scaling are recovered from it and checked by computing the factors again; what does not match
is refused.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RopeConfig
from ..errors import ConvertError
from .gguf_header import GGUFHeader, get

FACTORS = ("rope.scaling.factor", "rope.scale_linear")
TOLERANCE = 1e-4  # relative; the factors were computed and stored in float32


def rope_fields(header: GGUFHeader, path: Path, head_dim: int, model: str = "llama") -> dict[str, Any]:
    """Hugging Face's `rope_parameters`. model: the architecture, which keys begin with. Raises ConvertError naming the key for scalings this project does not
    compute."""
    number = "a positive number"
    base = get(header, path, f"{model}.rope.freq_base", _positive, number, 10000.0)
    theta = float(str(np.float32(base)))
    # llama.cpp's reading: a factor counts unless the type is none, by its older name too; 0 is no factor.
    kind = header.metadata.get(f"{model}.rope.scaling.type", "linear")
    keys = [f"{model}.{name}" for name in FACTORS]
    key = next((k for k in keys if k in header.metadata), keys[0])
    factor = header.metadata.get(key, 1.0) or 1.0
    if kind not in ("none", "linear") or not _positive(factor):
        raise ConvertError(
            f"{path}: {model}.rope.scaling.type {kind!r} with {key} {factor!r} is not supported: only linear and Llama 3.1 scaling are"
        )
    fields: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    scaled = factor != 1.0 and kind == "linear"
    if scaled:
        fields |= {"rope_type": "linear", "factor": float(str(np.float32(factor)))}
    if "rope_freqs.weight" not in header.tensors:
        return fields
    if scaled:
        raise ConvertError(
            f"{path} has linear rope scaling and rope_freqs.weight: lm2 computes one or the other; use the original checkpoint"
        )
    factors = _read_factors(header, path, head_dim)
    found = recover(factors, theta, header.metadata.get(f"{model}.rope.scaling.original_context_length"))
    if found is None:
        raise ConvertError(
            f"{path}: rope_freqs.weight is no Llama 3.1 scaling (factors {factors.min():.4g} to "
            f"{factors.max():.4g}): use the original checkpoint"
        )
    if found.rope_type != "default":
        fields |= {"rope_type": found.rope_type, "factor": found.factor}
    if found.rope_type == "llama3":
        fields |= {
            "low_freq_factor": found.low_freq_factor,
            "high_freq_factor": found.high_freq_factor,
            "original_max_position_embeddings": found.original_max_position_embeddings,
        }
    return fields


def recover(factors: np.ndarray, theta: float, original: Any = None) -> RopeConfig | None:
    """The scaling whose frequencies are theta's divided by `factors` (head_dim / 2,), or None.

    low, high and original only matter through original / (high - low) and low / (high - low), so low is taken as 1,
    as in every release.
    """
    largest = _tidy(float(factors.max()))
    candidates = [RopeConfig(theta), RopeConfig(theta, "linear", largest)]
    for length in (original, 8192):
        if type(length) is int and length > 0:
            candidates.append(RopeConfig(theta, "llama3", largest, 1.0, 4.0, length))
    fitted = _fit(factors, theta, largest)
    if fitted:
        candidates.append(fitted)
    head_dim = 2 * len(factors)
    plain = np.array(RopeConfig(theta).inverse_frequencies(head_dim))
    for rope in candidates:
        again = plain / np.array(rope.inverse_frequencies(head_dim))
        if np.allclose(again, factors, rtol=TOLERANCE, atol=0):
            return rope
    return None


def _fit(factors: np.ndarray, theta: float, largest: float) -> RopeConfig | None:
    """Solve keep = a x + b over the blended pairs, x = frequency / 2 pi: a = original / (high - low), b = -low /
    (high - low)."""
    if largest <= 1.0:
        return None
    x = np.array(RopeConfig(theta).inverse_frequencies(2 * len(factors))) / (2 * math.pi)
    keep = (1.0 / factors.astype(np.float64) - 1.0 / largest) / (1.0 - 1.0 / largest)
    blended = (keep > 1e-3) & (keep < 1 - 1e-3)
    if blended.sum() < 2:
        return None
    a, b = np.polyfit(x[blended], keep[blended], 1)
    if a <= 0 or b >= 0:
        return None
    high = _tidy(1.0 - 1.0 / b)
    return RopeConfig(theta, "llama3", largest, 1.0, high, max(1, round(a * (high - 1.0))))


def _read_factors(header: GGUFHeader, path: Path, head_dim: int) -> np.ndarray:
    tensor = header.tensors["rope_freqs.weight"]
    if tensor.kind != "F32" or tensor.shape != (head_dim // 2,):
        raise ConvertError(
            f"{path}: rope_freqs.weight is {tensor.kind} {list(tensor.shape)}, expected F32 [{head_dim // 2}]: convert to GGUF again"
        )
    with open(path, "rb") as f:
        f.seek(tensor.begin)
        factors = np.frombuffer(f.read(tensor.nbytes), "<f4")
    if not np.isfinite(factors).all() or (factors <= 0).any():
        raise ConvertError(f"{path}: tensor rope_freqs.weight holds values that are not positive numbers: download the file again")
    return factors


def _tidy(x: float) -> float:
    """x, or the number with three decimals next to it when float32 rounding explains the difference."""
    return round(x, 3) if abs(round(x, 3) - x) <= TOLERANCE * x else x


def _positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) and x > 0
