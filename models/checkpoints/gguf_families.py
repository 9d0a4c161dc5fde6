"""Architectures of GGUF files that can be converted: whose family each is, what llama.cpp calls its parts, and which keys it has beside a Llama's.

Knows names; opens no file. llama.cpp turns q and k in pairs that lie side by side (NORM) or half a head apart (NEOX, `llama_model_rope_type`). Its
converter reorders their rows only where its order is not the checkpoint's: Llama, Granite, SmolLM3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .families import glm
from .families.family import Fields, Tensors, head_width, unchanged
from .families.folds import split_rows
from .families.gemma3 import fold_raised


@dataclass(frozen=True)
class Architecture:
    """name: as general.architecture says it. model_type: of the family (families/). pairs_apart: whether q and k have the rows that the family's own
    checkpoint has, in its order. part: whether a part of a head may turn. longrope: whether the file may have longrope's factors.

    parts: of a layer, beside a Llama's, llama.cpp's name -> Hugging Face's. numbers: keys of the architecture, beside a Llama's, that hold a number:
    key -> field of config.json; 0 says nothing, as llama.cpp has it. layers: keys that hold a number or yes or no for each layer: key -> the field for
    a number; a list is of the layers that see a window, layer_types. fields: what the file does not say, or says otherwise than config.json, of the
    fields that it does. fold: the family's, for tensors that llama.cpp's converter has changed; None where it changes none.
    """

    name: str
    model_type: str
    pairs_apart: bool = False
    part: bool = False
    longrope: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
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


def olmo(fields: Fields) -> Fields:
    """OLMo 2's and OLMo 3's fields: llama.cpp has both under one name, and without a window all layers see everything. With one, each fourth does where no
    key says otherwise, and the rest turn without scaling, by the same base if there is no other.
    """
    layers, rope = fields["num_hidden_layers"], fields["rope_parameters"]
    every = fields.get("sliding_window_pattern", 4)
    kinds = fields.get("layer_types") or ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    local = {"rope_type": "default", "rope_theta": fields.get("rope_local_base_freq", rope["rope_theta"])}
    return {
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        "layer_types": kinds if fields.get("sliding_window") else ["full_attention"] * layers,
    }


def exaone4(fields: Fields) -> Fields:
    """EXAONE 4's fields. Without a window all layers see everything and turn; the model of 64 layers (32B) has one of 4096, but for each fourth layer, where
    no key says otherwise."""
    layers = fields["num_hidden_layers"]
    window = fields.get("sliding_window", 4096 if layers == 64 else None)
    every = fields.get("sliding_window_pattern", 4)
    return {"sliding_window": window, "sliding_window_pattern": every, **({} if window else {"layer_types": ["full_attention"] * layers})}


def joined_qkv(tensors: Tensors, fields: Fields) -> Tensors:
    """GLM's tensors where q, k and v lie in one matrix, in that order, as in the checkpoints that are older than its family."""
    e = head_width(fields)
    q, kv = fields["num_attention_heads"] * e, fields["num_key_value_heads"] * e
    tensors = split_rows(tensors, "self_attn.qkv_proj", {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv})
    return glm.fold(tensors, fields)


WINDOW = {"attention.sliding_window": "sliding_window"}
PATTERN = {"attention.sliding_window_pattern": "sliding_window_pattern"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
JOINED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
ARCHITECTURES: Mapping[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("llama", "llama"),
        Architecture("qwen2", "qwen2", pairs_apart=True),
        Architecture("qwen3", "qwen3", pairs_apart=True, parts=HEAD_NORMS),
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
            parts={**HEAD_NORMS, **NORMS_AFTER, "ffn_norm": "pre_feedforward_layernorm"},
            numbers={**WINDOW, **PATTERN, "rope.freq_base_swa": "rope_local_base_freq"},
            fields=gemma3,
            fold=fold_raised,  # its converter adds the 1 to the norms
        ),
        Architecture("smollm3", "smollm3", fields=lambda fields: {"no_rope_layer_interval": 4}),
        Architecture("gemma", "gemma", pairs_apart=True, fold=unchanged),  # its converter adds the 1 to the norms
        Architecture("phi3", "phi3", pairs_apart=True, part=True, longrope=True, parts=JOINED, numbers=WINDOW),
        Architecture("seed_oss", "seed_oss", pairs_apart=True, parts={"post_attention_norm": "post_attention_layernorm"}),
        Architecture("ernie4_5", "ernie4_5", pairs_apart=True, fields=lambda fields: {"use_bias": fields["attention_bias"]}),
        Architecture(
            "olmo2",
            "olmo3",
            pairs_apart=True,
            parts={**HEAD_NORMS, **NORMS_AFTER},
            numbers={**WINDOW, "rope.freq_base_swa": "rope_local_base_freq"},
            layers=PATTERN,
            fields=olmo,
        ),
        Architecture("exaone4", "exaone4", pairs_apart=True, parts={**HEAD_NORMS, **NORMS_AFTER}, numbers=WINDOW, layers=PATTERN, fields=exaone4),
        Architecture(
            "glm4",
            "glm4",
            pairs_apart=True,
            part=True,
            parts={"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm", "ffn_up": "mlp.gate_up_proj"},
        ),
        Architecture("chatglm", "glm", pairs_apart=True, part=True, parts=JOINED, fold=joined_qkv),
    )
}
