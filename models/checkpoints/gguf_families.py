"""Architectures of GGUF files that can be converted: whose family each is, what llama.cpp calls its parts, and which keys it has beside a Llama's.

Knows names; opens no file. Row orders are those of llama.cpp's `llama_model_rope_type`: NORM has the pairs of q and k side by side, NEOX as Hugging
Face has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """name: as general.architecture says it. model_type: of the family (families/). pairs_apart: whether q and k have Hugging Face's order of rows.

    parts: of a layer, beside a Llama's, llama.cpp's name -> Hugging Face's. numbers: keys of the architecture, beside a Llama's, that hold a number:
    key -> field of config.json; 0 says nothing, as llama.cpp has it. fields: what the file does not say, of the fields that it does.
    """

    name: str
    model_type: str
    pairs_apart: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    fields: Callable[[Fields], Fields] = lambda fields: {}


ARCHITECTURES: Mapping[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("llama", "llama"),
        Architecture("qwen2", "qwen2", pairs_apart=True),
        Architecture("qwen3", "qwen3", pairs_apart=True, parts={"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}),
        Architecture(
            "granite",
            "granite",
            numbers={
                "attention.scale": "attention_multiplier",
                "embedding_scale": "embedding_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
            fields=lambda fields: {"attention_multiplier": fields["head_dim"] ** -0.5},
        ),
        Architecture("smollm3", "smollm3", fields=lambda fields: {"no_rope_layer_interval": 4}),
    )
}
