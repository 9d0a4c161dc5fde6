"""Rotary settings from GGUF metadata, including the frequency factors that Llama 3.1 and longrope files carry as tensors.

Knows how llama.cpp writes them: `rope_freqs.weight` holds, for each rotary pair, what its frequency is divided by. The four numbers of Hugging Face's
`llama3` scaling are recovered from it and checked by computing the factors again; what does not match is refused. `rope_factors_short.weight` and
`_long` hold the same for sequences up to the original length and beyond it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RopeConfig
from ..errors import ConvertError
from .gguf_header import GGUFHeader, get

FACTORS = ("rope.scaling.factor", "rope.scale_linear")
FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TOLERANCE = 1e-4  # relative; the factors were computed and stored in float32


def rope_fields(header: GGUFHeader, path: Path, turning: int, model: str = "llama", longrope: bool = False) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`. turning: the dimensions of a head that turn. model: the architecture, which keys begin with. longrope: whether its
    files may have longrope's factors. Raises ConvertError naming the key for scalings this project does not compute."""

    def number(key: str, default: float) -> float:
        return float(str(np.float32(get(header, path, f"{model}.rope.{key}", _positive, "a positive number", default))))

    theta = number("freq_base", 10000.0)
    # llama.cpp's reading: a factor counts unless the type is none, by its older name too; 0 is no factor.
    kind = header.metadata.get(f"{model}.rope.scaling.type", "linear")
    keys = [f"{model}.{name}" for name in FACTORS]
    key = next((k for k in keys if k in header.metadata), keys[0])
    factor = header.metadata.get(key, 1.0) or 1.0
    kinds = ("none", "linear", "yarn", *(("longrope",) if longrope else ()))
    if kind not in kinds or not _positive(factor):
        raise ConvertError(
            f"{path}: {model}.rope.scaling.type {kind!r} with {key} {factor!r} is not supported: only {', '.join(kinds[1:])} and Llama 3.1 scaling are"
        )
    factor = 1.0 if kind == "none" else float(str(np.float32(factor)))
    tables = [name for name in (FREQUENCIES, SHORT, LONG) if name in header.tensors and (longrope or name == FREQUENCIES)]
    if factor != 1.0 and (tables or kind == "longrope"):
        what = tables[0] if tables else "longrope"
        raise ConvertError(f"{path} has {kind} rope scaling by {factor} and {what}: lm2 computes one or the other; use the original checkpoint")
    attention = number("scaling.attn_factor", 1.0)
    if attention != 1 and SHORT not in tables and (kind != "yarn" or factor == 1):
        raise ConvertError(f"{path}: {model}.rope.scaling.attn_factor {attention} without yarn or longrope is not supported: use the original checkpoint")
    if kind == "yarn" and factor != 1.0:
        return {"rope_theta": theta, "rope_type": "yarn", "factor": factor} | _yarn(header, path, model, factor, attention)
    if kind == "longrope" or SHORT in tables or LONG in tables:
        return {"rope_theta": theta, "rope_type": "longrope"} | _longrope(header, path, model, turning, attention)
    fields: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if factor != 1.0:
        fields |= {"rope_type": "linear", "factor": factor}
    if not tables:
        return fields
    factors = _read_factors(header, path, turning, FREQUENCIES)
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


def _original(header: GGUFHeader, path: Path, model: str) -> int:
    """The length a model was trained with before its positions were scaled; all of its positions where no key says it."""
    key = f"{model}.rope.scaling.original_context_length"
    return get(header, path, key, lambda x: type(x) is int and x > 0, "a positive whole number", header.metadata.get(f"{model}.context_length"))


def _yarn(header: GGUFHeader, path: Path, model: str, factor: float, attention: float) -> dict[str, Any]:
    """yarn's fields beside its factor. Cosines and sines grow by 0.1 ln(factor) + 1, times attn_factor. llama.cpp reads no key that begins with yarn_ for the
    architectures here, and Hugging Face both betas: those are taken as the file says them, and the two factors must say what is computed without them."""

    def number(key: str, default: float) -> float:
        return float(str(np.float32(get(header, path, f"{model}.rope.scaling.yarn_{key}", _positive, "a positive number", default))))

    grown = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    for key, need, said in (("ext_factor", 1.0, number("ext_factor", 1.0)), ("attn_factor", grown, number("attn_factor", grown))):
        if abs(said / need - 1) > TOLERANCE:
            raise ConvertError(f"{path}: {model}.rope.scaling.yarn_{key} {said} must be {need:.7g}: lm2 computes no other; use the original checkpoint")
    return {
        "original_max_position_embeddings": _original(header, path, model),
        "beta_fast": number("beta_fast", 32.0),
        "beta_slow": number("beta_slow", 1.0),
        "attention_factor": grown * attention,
    }


def _longrope(header: GGUFHeader, path: Path, model: str, turning: int, attention: float) -> dict[str, Any]:
    """longrope's fields: the factors up to the original length, and those beyond, which no window of the model reaches. llama.cpp multiplies by
    attn_factor alone."""
    for name in (SHORT, LONG):
        if name not in header.tensors:
            raise ConvertError(f"{path} has no tensor {name}, its longrope scaling needs it: convert the model to GGUF again")
    short, long = (_read_factors(header, path, turning, name) for name in (SHORT, LONG))
    return {
        "short_factor": [float(str(x)) for x in short],
        "long_factor": [float(str(x)) for x in long],
        "attention_factor": attention,
        "original_max_position_embeddings": _original(header, path, model),
    }


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


def _read_factors(header: GGUFHeader, path: Path, turning: int, name: str) -> np.ndarray:
    tensor = header.tensors[name]
    if tensor.kind != "F32" or tensor.shape != (turning // 2,):
        raise ConvertError(f"{path}: {name} is {tensor.kind} {list(tensor.shape)}, expected F32 [{turning // 2}]: convert to GGUF again")
    with open(path, "rb") as f:
        f.seek(tensor.begin)
        factors = np.frombuffer(f.read(tensor.nbytes), "<f4")
    if not np.isfinite(factors).all() or (factors <= 0).any():
        raise ConvertError(f"{path}: tensor {name} holds values that are not positive numbers: download the file again")
    return factors


def _tidy(x: float) -> float:
    """x, or the number with three decimals next to it when float32 rounding explains the difference."""
    return round(x, 3) if abs(round(x, 3) - x) <= TOLERANCE * x else x


def _positive(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) and x > 0
