"""Fields of config.json, one at a time: `python benchmarks/reliability/family_fields.py all` changes each field of each family's checkpoints in turn.

transformers reads the same folder. What lm2 accepts must have transformers' logits (relative L2 at most 1e-5), and what it does not accept it must refuse in
one line that names config.json or a tensor. Values are those that another model could have: other numbers, null, left out, other words, other kinds of rope,
and fields of other families. Prompts of 40 tokens, longer than every window. Needs the test extra and torch.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kit

# isort: split
import family_kit
import numpy as np
import sources

IDS = np.random.default_rng(7).integers(3, 96, (1, 40))
GONE = "left out"
SKIPPED = {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}  # what transformers loads at all
# Of other families or other versions: what a file may also say.
MORE: dict[str, list[Any]] = {
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "use_bias": [True],
    "head_dim": [8, 10, 12, 16, None],
    "num_key_value_heads": [1, None],
    "tie_word_embeddings": [True, False, None],
    "sliding_window": [0, 3, 7, None],
    "use_sliding_window": [True, False, None],
    "max_window_layers": [0, 1, 3],
    "layer_types": [["sliding_attention", "full_attention", "sliding_attention"], ["full_attention"] * 3, ["sliding_attention"] * 3, None],
    "sliding_window_pattern": [1, 2, 3],
    "_sliding_window_pattern": [2],
    "no_rope_layers": [[0, 1, 1], [], None],
    "no_rope_layer_interval": [1, 3],
    "partial_rotary_factor": [0.5, 1.0],
    "rope_theta": [60.0, None],
    "rope_local_base_freq": [60.0],
    "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 2.0}, None],
    "original_max_position_embeddings": [16, 32],
    "max_position_embeddings": [20, 33, None],
    "hidden_act": ["silu", "gelu", "gelu_pytorch_tanh", "relu", None],
    "hidden_activation": ["silu", "gelu", "gelu_pytorch_tanh", None],
    "rms_norm_eps": [1e-3, 0.5, None],
    "norm_eps": [0.1],
    "layer_norm_eps": [0.1],
    "query_pre_attn_scalar": [5, 64, None],
    "attn_logit_softcapping": [2.0],
    "final_logit_softcapping": [2.0],
    "attention_multiplier": [0.5, None],
    "embedding_multiplier": [3.0],
    "residual_multiplier": [0.5],
    "logits_scaling": [4.0],
    "use_post_norm": [True, False],
    "use_qk_norm": [True, False],
    "qk_norm": [True],
    "attention_out_bias": [True, False],
    "use_bidirectional_attention": [True],
    "use_cache": [False],
    "is_decoder": [False, True],
    "attention_dropout": [0.5],
    "vocab_size": [95],
    "pad_token_id": [0, 3],
    "padding_idx": [3],
    "scale_attn_weights": [False],
    "attention_scaling": [2.0],
    "num_experts": [4],
    "pretraining_tp": [2],
}  # fmt: skip
ROPES: list[Any] = [
    {"rope_type": "default", "rope_theta": 60.0},
    {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.4},
    {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    {"rope_theta": 60.0},
    {"rope_type": "default"},
    {},
]


def others(name: str, value: Any) -> Iterator[Any]:
    """Values of the kind that a field has, other than its own."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, max(1, value // 2), 0)
    elif isinstance(value, float):
        yield from (value * 2, value / 2, 0.0)
    elif isinstance(value, str):
        yield from ("silu", "gelu", "something")
    elif isinstance(value, list):
        yield from (value[:-1], value[::-1], [*value[1:], *value[:1]])
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: x} for x in others(key, inner) if x != GONE)
    yield from (None, GONE)


def changes(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every changed field of a config: (name, value)."""
    seen = set()
    for name in dict.fromkeys([*config, *MORE, "rope_parameters"]):
        if name in SKIPPED:
            continue
        values = [*(others(name, config[name]) if name in config else ()), *MORE.get(name, ()), *(ROPES if name == "rope_parameters" else ())]
        for value in values:
            key = (name, json.dumps(value))
            if key not in seen and not (name in config and value == config[name] and type(value) is type(config[name])):
                seen.add(key)
                yield name, value


def edit(config: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The config with one field changed. A rope_theta or a rope_scaling of older files stands alone, without rope_parameters."""
    out = {k: v for k, v in config.items() if k != name}
    if name in ("rope_theta", "rope_scaling"):
        out.pop("rope_parameters", None)
    return out if value == GONE else out | {name: value}


def theirs(folder: Path, ids: Any) -> Any:
    """transformers' logits of a folder; None where it cannot be read, or is read with weights that the file does not have."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        if said["missing_keys"] or said["unexpected_keys"] or said["mismatched_keys"]:
            return None
        out = sources.logits(model.eval(), ids)
    except Exception:  # whatever transformers does with a config that is wrong
        return None
    return out if np.isfinite(out).all() else None


def verdict(folder: Path, made: Path) -> tuple[str, str]:
    """What becomes of a folder: (verdict, detail). Verdicts: same, refused, theirs cannot (accepted here alone), wrong."""
    from lm2.models.checkpoints.convert import convert
    from lm2.models.config import read_config

    try:
        convert(folder, made)
    except Exception as error:
        try:
            kit.check_refusal(error)
        except kit.Wrong as wrong:
            return "wrong", f"refused badly: {wrong}"
        except Exception as other:
            return "wrong", f"{type(other).__name__}: {other}"
        named = f"{folder}/config.json" in str(error) or "tensor " in str(error)
        return ("refused", str(error).replace(str(folder), "SRC")) if named else ("wrong", f"names no file: {error}")
    ids = IDS[:, : read_config(made).max_position_embeddings]
    want = theirs(folder, ids)
    if want is None:
        return "theirs cannot", ""
    off = family_kit.error(family_kit.backend_logits(made, ids), want)
    return ("same", f"{off:.1e}") if off <= family_kit.GATE else ("wrong", f"relative L2 {off:.2g}")


def sweep(family: str, name: str, place: Path, only: str | None = None) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, verdict, detail) for every change to one checkpoint."""
    import shutil

    src, made = place / "src", place / "made"
    family_kit.made(src, family, name)
    plain = json.loads((src / "config.json").read_text())
    for field, value in changes(plain):
        if only is not None and field != only:
            continue
        (src / "config.json").write_text(json.dumps(edit(plain, field, value)))
        yield field, value, *verdict(src, made)
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    import transformers

    parser = kit.arguments(__doc__ or "", list(family_kit.FAMILIES), "shapes", 9)
    parser.add_argument("--field", help="this one alone")
    parser.add_argument("--show", action="store_true", help="every change, not the wrong ones alone")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    for family in kit.chosen(a.names, list(family_kit.FAMILIES)):
        for name in list(family_kit.FAMILIES[family][1])[: a.count]:
            began, found = time.monotonic(), Counter()
            with kit.scratch() as place:
                for field, value, said, detail in sweep(family, name, place, a.field):
                    found[said] += 1
                    if a.show or said == "wrong":
                        print(f"--- {family} {name}: {field} = {json.dumps(value)[:160]}: {said}; {detail}", flush=True)
            failed += found["wrong"]
            print(f"{family} {name}: {found.total()} changes: {found['same']} the same, {found['refused']} refused, {found['theirs cannot']} that "
                  f"transformers cannot load, {found['wrong']} wrong; {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
