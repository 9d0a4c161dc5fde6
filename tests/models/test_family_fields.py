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
}  # fmt: skip


def edited(folder, family, name, fields):
    """A folder of a family whose config says otherwise; None takes a field out."""
    kit.made(folder, family, name)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
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
