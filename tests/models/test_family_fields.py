"""Fields of config.json edited by hand: transformers reads the folder, and what it computes is computed, or the field is refused by name."""

import json

import family_kit as kit
import numpy as np
import pytest
import sources

from lm2.models.checkpoints.convert import convert
from lm2.models.config import read_config

IDS = np.random.default_rng(7).integers(3, 96, (1, 40))
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0}
FIELDS = {
    "yarn from all positions, of which a window leaves some": ("mistral", "window", {"rope_parameters": YARN}),
    "a switch that mistral does not have": ("mistral", "window", {"use_sliding_window": False}),
    "qwen2: windows from another layer on": ("qwen2", "window", {"layer_types": None, "max_window_layers": 2, "sliding_window": 3}),
    "qwen3: windows off": ("qwen3", "window", {"use_sliding_window": False, "layer_types": None}),
    "phi3: half of a head turns": ("phi3", "part", {"rope_parameters": {"rope_type": "default", "rope_theta": 60.0, "partial_rotary_factor": 0.5}}),
    "smollm3: other layers that do not turn": ("smollm3", "interval", {"no_rope_layers": [1, 0, 1]}),
    "granite: no factors": ("granite", "tied", {"embedding_multiplier": None, "residual_multiplier": 1.0, "logits_scaling": 1.0}),
    "hyperclovax: scores without a factor": ("hyperclovax", "grouped", {"attention_multiplier": None}),
    "seed_oss: an epsilon": ("seed_oss", "outer", {"rms_norm_eps": 0.1}),
    "ernie4_5: another base": ("ernie4_5", "own width", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 60.0}}),
    "helium: no base": ("helium", "biases", {"rope_parameters": None}),
    "olmo2: yarn": ("olmo2", "biases", {"rope_parameters": YARN}),
    "olmo3: one rope": ("olmo3", "alike", {"rope_parameters": None, "rope_theta": None, "sliding_window": 5}),
    "exaone4: windows": ("exaone4", "no window", {"sliding_window": 3, "layer_types": None, "sliding_window_pattern": 2}),
    "gemma3_text: a divisor of scores": ("gemma3_text", "own width", {"query_pre_attn_scalar": 64, "sliding_window": 5}),
    "gemma: an epsilon": ("gemma", "own width", {"rms_norm_eps": 0.1}),
    "glm: all of a head turns": ("glm", "third", {"rope_parameters": {"rope_type": "default", "rope_theta": 60.0, "partial_rotary_factor": 1.0}}),
    "glm4: a part that is not said": ("glm4", "own width", {"rope_parameters": {"rope_type": "default", "rope_theta": 60.0}}),
}  # fmt: skip


def edited(folder, family, name, fields):
    """A folder of a family whose config says otherwise; None takes a field out."""
    kit.made(folder, family, name)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if fields.get(key, "") is not None}))
    return folder


def theirs(folder):
    """The model that transformers makes of a folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_means_what_it_means_in_transformers(tmp_path, case):
    src = edited(tmp_path / "src", *FIELDS[case])
    convert(src, tmp_path / "dst")
    ids = IDS[:, : read_config(tmp_path / "dst").max_position_embeddings]
    assert kit.error(kit.backend_logits(tmp_path / "dst", ids), sources.logits(theirs(src), ids)) < kit.GATE
