"""A second hand that reads a config.json strictly, after docs/model.md and Hugging Face's field names: what each field must be, and its default.

Shares no code with the package. `expected` gives the values that an accepted config must have been read to, or says which field is wrong.
"""

import math
from typing import Any


class Bad(ValueError):
    """The field is wrong: such a config must not be accepted."""


def whole(d: dict[str, Any], key: str, default: Any = None, least: int = 1) -> Any:
    x = d.get(key)
    x = default if x is None else x
    if type(x) is not int or x < least:
        raise Bad(f"{key} {x!r}")
    return x


def number(d: dict[str, Any], key: str, default: Any = None) -> float:
    x = d.get(key, default)
    if type(x) not in (int, float) or not 0 < x < math.inf:
        raise Bad(f"{key} {x!r}")
    return float(x)


def choice(d: dict[str, Any], key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
    x = d.get(key, default)
    if not any(x == a and type(x) is type(a) for a in allowed):
        raise Bad(f"{key} {x!r}")
    return x


def flag(d: dict[str, Any], key: str) -> bool:
    return choice(d, key, False, (True, False))


def ids(x: Any, vocab: int, many: bool) -> tuple[int, ...]:
    values = [] if x is None else x if many and isinstance(x, list) else [x]
    for i in values:
        if type(i) is not int or not 0 <= i < vocab:
            raise Bad(f"token id {i!r}")
    return tuple(values)


def rope(d: dict[str, Any]) -> dict[str, Any]:
    new, old = d.get("rope_parameters") or {}, d.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise Bad("rope")
    block = new or old
    thetas = [t for t in (new.get("rope_theta"), d.get("rope_theta")) if t is not None]
    for t in thetas:
        if type(t) not in (int, float) or not 0 < t < math.inf:
            raise Bad(f"rope_theta {t!r}")
    if len({float(t) for t in thetas}) > 1:
        raise Bad(f"two thetas {thetas}")
    kind = next((block[k] for k in ("rope_type", "type") if block.get(k) is not None), "default")
    out: dict[str, Any] = {"theta": float(thetas[0]) if thetas else 10000.0, "rope_type": choice({"k": kind}, "k", None, ("default", "linear", "llama3", "yarn", "longrope", "dynamic"))}
    if kind == "dynamic":  # nothing but default up to max_position_embeddings
        number(block, "factor")
        out["rope_type"] = "default"
    elif kind not in ("default", "longrope"):
        out["factor"] = number(block, "factor")
    if kind == "longrope":
        raise Bad("longrope")  # no file here has its lists of factors: tests/models/test_families.py
    if kind == "yarn":
        given = {k: v for k, v in block.items() if v is not None}
        size = 1.0 if out["factor"] <= 1 else 0.1 * math.log(out["factor"]) + 1.0
        out |= {"beta_fast": number(given, "beta_fast", 32.0), "beta_slow": number(given, "beta_slow", 1.0)}
        out |= {"attention_factor": number(given, "attention_factor", size), "truncate": choice(given, "truncate", True, (True, False))}
    if kind in ("llama3", "yarn"):
        name = "original_max_position_embeddings"  # beside the block too, else all positions, as in transformers
        lengths = [x for x in (block.get(name), d.get(name)) if x is not None]
        if any(x != lengths[0] for x in lengths):
            raise Bad(f"two lengths {lengths}")
        out[name] = whole({name: lengths[0] if lengths else d.get("max_position_embeddings")}, name)
    if kind == "llama3":
        out["low_freq_factor"], out["high_freq_factor"] = number(block, "low_freq_factor"), number(block, "high_freq_factor")
        if out["high_freq_factor"] <= out["low_freq_factor"]:
            raise Bad("factors")
    return out


def backbone(d: Any, count: int) -> dict[str, Any]:
    """What is not a Llama's. Raises Bad: nothing in it may be overlooked."""
    d = {} if d is None else d
    if not isinstance(d, dict) or set(d) - {"qk_norm", "no_rope", "norms", "activation", "embedding_scale", "local", "local_rope", "windows"}:
        raise Bad(f"backbone {d!r}")
    out: dict[str, Any] = {
        "qk_norm": choice(d, "qk_norm", "none", ("none", "head", "whole")),
        "norms": choice(d, "norms", "before", ("before", "after", "both")),
        "activation": choice(d, "activation", "silu", ("silu", "gelu_tanh")),
        "embedding_scale": number(d, "embedding_scale", 1.0),
    }
    for key in ("no_rope", "local"):
        layers = d.get(key, [])
        if not isinstance(layers, list) or any(type(i) is not int or not 0 <= i < count for i in layers) or layers != sorted(set(layers)):
            raise Bad(f"{key} {layers!r}")
        out[key] = tuple(layers)
    local = d.get("local_rope")
    if (local is None) == bool(out["local"]) or not isinstance(local, dict | None):
        raise Bad(f"local_rope {local!r}")
    out["local_rope"] = None if local is None else rope({"rope_parameters": local})
    windows = d.get("windows", [])
    if not isinstance(windows, list) or any(w is not None and (type(w) is not int or not 1 <= w < 1 << 31) for w in windows):
        raise Bad(f"windows {windows!r}")
    if windows and (len(windows) != count or windows == [None] * count):
        raise Bad(f"windows {windows!r}")
    out["windows"] = tuple(windows)
    return out


def llama(d: Any) -> dict[str, Any]:
    """The backbone's fields. Raises Bad."""
    if not isinstance(d, dict):
        raise Bad("no object")
    other = backbone(d.get("backbone"), whole(d, "num_hidden_layers"))
    choice(d, "hidden_act", *(("silu", ("silu", "swish")) if other["activation"] == "silu" else ("gelu_pytorch_tanh", ("gelu_pytorch_tanh",))))
    hidden, heads = whole(d, "hidden_size"), whole(d, "num_attention_heads")
    out = {
        "vocab_size": whole(d, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": whole(d, "intermediate_size"),
        "num_hidden_layers": whole(d, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(d, "num_key_value_heads", heads),
        "head_dim": whole(d, "head_dim", hidden // heads),
        "max_position_embeddings": whole(d, "max_position_embeddings", 2048),
        "rms_norm_eps": number(d, "rms_norm_eps", 1e-6),
        "rope": rope(d),
        "tie_word_embeddings": flag(d, "tie_word_embeddings"),
        "attention_bias": flag(d, "attention_bias"),
        "mlp_bias": flag(d, "mlp_bias"),
        "backbone": other,
    }
    ids(d.get("bos_token_id"), out["vocab_size"], False)
    if out["head_dim"] % 2 or heads % out["num_key_value_heads"]:
        raise Bad("heads")
    return out


def memory(d: Any) -> dict[str, Any]:
    """The memory block. Raises Bad."""
    if not isinstance(d, dict):
        raise Bad("memory")
    layers = d.get("layers", [])
    if not isinstance(layers, list) or any(type(i) is not int or i < 0 for i in layers) or layers != sorted(set(layers)):
        raise Bad(f"layers {layers!r}")
    slots = whole(d, "slots")
    return {
        "cell": choice(d, "cell", "gated", ("gated", "released")),
        "slots": slots,
        "chunk": whole(d, "chunk", slots),
        "layers": tuple(layers),
        "heads": whole(d, "heads"),
        "head_dim": whole(d, "head_dim"),
        "init": choice(d, "init", "zeros", ("zeros", "eye")),
        "output_projection": flag(d, "output_projection"),
        "scale": flag(d, "scale"),
        "gate_pool": choice(d, "gate_pool", "chunk", ("chunk", "causal")),
        "trained": flag(d, "trained"),
        "content": choice(d, "content", "both", ("both", "token")),
        "keys": choice(d, "keys", "row", ("row", "pair")),
    }


def lm2(d: Any) -> dict[str, Any]:
    """All fields of an lm2 config. Raises Bad."""
    if isinstance(d, dict):
        choice(d, "model_type", "lm2", ("lm2",))
        choice({"k": d.get("dtype") or d.get("torch_dtype") or "float32"}, "k", None, ("float32", "bfloat16", "float16", "float64"))
        choice({"k": type("" if d.get("name") is None else d["name"]).__name__}, "k", None, ("str",))
    out = llama(d)
    m = out["memory"] = memory(d.get("memory"))
    out["eos_token_id"] = ids(d.get("eos_token_id"), out["vocab_size"], True)
    inner, hidden = m["heads"] * m["head_dim"], out["hidden_size"]
    if m["layers"] and m["layers"][-1] >= out["num_hidden_layers"]:
        raise Bad("a layer that is not there")
    if m["chunk"] > out["max_position_embeddings"] or m["slots"] % m["chunk"]:
        raise Bad("chunk")
    if m["cell"] == "gated" and not m["output_projection"] and inner != hidden:
        raise Bad("width of the read")
    if m["cell"] == "released":
        every = tuple(range(out["num_hidden_layers"]))
        if not m["slots"] == m["chunk"] == hidden == inner or m["layers"] != every or m["content"] != "both" or m["keys"] != "row":
            raise Bad("released needs T = N = D")
    return out


def compare(config: Any, want: dict[str, Any]) -> str:
    """What differs between a config that was read and what it must be, or nothing."""
    for key, value in want.items():
        have = getattr(config, key)
        if isinstance(value, dict):
            if inner := compare(have, value):
                return f"{key}.{inner}"
        elif have != value or type(have) is not type(value):
            return f"{key} is {have!r}, must be {value!r}"
    return ""
