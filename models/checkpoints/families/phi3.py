"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama with q, k, v in one matrix and gate, up in another, of whose heads a part may turn.

`longrope` has two sets of factors, one for sequences within the original length and one for longer ones: the model gets the first and that length.
"""

from ...fields import whole
from ...rope import NEW, OLD
from .family import WINDOWED, Family, Fields, Tensors, head_width, windows_everywhere
from .folds import KEYS, QUERIES, each, partly_turned, reordered, split_rows
from .partial import in_pairs, turning

# The family's own code, which transformers has too.
CODE = {
    "configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM", "modeling_phi3.Phi3ForSequenceClassification",
    "modeling_phi3.Phi3ForTokenClassification", "Xenova/gpt-4o",
}  # fmt: skip


def fields(config: Fields) -> Fields:
    """A Llama's fields: `su` and `yarn` are older names of longrope here."""
    out = in_pairs(config) | {"attention_bias": False, "mlp_bias": False}
    for name in (NEW, OLD):
        if isinstance(out.get(name), dict) and out[name]:
            block = {k: v for k, v in out[name].items() if k != "type"}
            kind = out[name].get("type") or block.get("rope_type") or "default"
            out[name] = block | {"rope_type": "longrope" if kind in ("su", "yarn") else kind}
    return out


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The fused matrices as five, and the dimensions that turn in the pairs of a Llama."""
    e, ffn = head_width(config), whole(config, "intermediate_size")
    q = whole(config, "num_attention_heads") * e
    kv = whole(config, "num_key_value_heads", q // e) * e
    tensors = split_rows(tensors, "self_attn.qkv_proj", {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv})
    tensors = split_rows(tensors, "mlp.gate_up_proj", {"mlp.gate_proj": ffn, "mlp.up_proj": ffn})
    order = partly_turned(e, turning(config))
    return each(tensors, f"{QUERIES}|{KEYS}", lambda t: reordered(t, order))


PHI3 = Family(
    "phi3",
    understood={
        **WINDOWED,
        "auto_map": lambda x: isinstance(x, dict) and all(v in CODE for v in x.values()),
        "full_attn_mod": lambda x: x == 1,
        "interpolate_factor": lambda x: x == 1,
    },
    defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    fields=fields,
    fold=fold,
    windows=windows_everywhere,
)
