"""Architectures of GGUF files that can be converted: whose family each is, what llama.cpp calls its parts, and which keys it has beside a Llama's.

Knows names; opens no file. Row orders are those of llama.cpp's `llama_model_rope_type`: NORM has the pairs of q and k side by side, NEOX as Hugging
Face has them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .families.family import Fields, Tensors
from .families.gemma3 import fold_raised


@dataclass(frozen=True)
class Architecture:
    """name: as general.architecture says it. model_type: of the family (families/). pairs_apart: whether q and k have Hugging Face's order of rows.

    parts: of a layer, beside a Llama's, llama.cpp's name -> Hugging Face's. numbers: keys of the architecture, beside a Llama's, that hold a number:
    key -> field of config.json; 0 says nothing, as llama.cpp has it. fields: what the file does not say, or says otherwise than config.json, of the
    fields that it does. fold: the family's, for tensors that llama.cpp's converter has changed; None where it changes none.
    """

    name: str
    model_type: str
    pairs_apart: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    fields: Callable[[Fields], Fields] = lambda fields: {}
    fold: Callable[[Tensors, Fields], Tensors] | None = None


def gemma3(fields: Fields) -> Fields:
    """Gemma 3's fields. As llama.cpp has them: without a window all layers see everything; the local base is 10000 and each sixth layer full where no key says
    otherwise; scores are divided by the root of the head's width, in the model of 62 layers (27B) by that of the hidden size over the heads.
    """
    layers, window = fields["num_hidden_layers"], fields.get("sliding_window")
    local = {"rope_type": "default", "rope_theta": fields.get("rope_local_base_freq", 10000.0)}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": fields["hidden_size"] // fields["num_attention_heads"] if layers == 62 else fields["head_dim"],
        "rope_parameters": {"full_attention": fields["rope_parameters"], "sliding_attention": local},
        **({} if window else {"layer_types": ["full_attention"] * layers}),
    }


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
            fields=lambda fields: {"attention_multiplier": fields.get("attention_multiplier", fields["head_dim"] ** -0.5)},
        ),
        Architecture(
            "gemma3",
            "gemma3_text",
            pairs_apart=True,
            parts={
                "attn_q_norm": "self_attn.q_norm",
                "attn_k_norm": "self_attn.k_norm",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            numbers={
                "attention.sliding_window": "sliding_window",
                "attention.sliding_window_pattern": "sliding_window_pattern",
                "rope.freq_base_swa": "rope_local_base_freq",
            },
            fields=gemma3,
            fold=fold_raised,  # its converter adds the 1 to the norms
        ),
        Architecture("smollm3", "smollm3", fields=lambda fields: {"no_rope_layer_interval": 4}),
    )
}
