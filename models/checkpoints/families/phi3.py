"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama with q, k, v in one matrix and gate, up in another, of whose heads a part may turn.

`longrope` has two sets of factors, one for sequences within the original length and one for longer ones: the model gets the first and that length.
"""

from ...errors import ConfigError
from ...fields import is_positive, whole
from ...rope import NEW, OLD, PAIRS, PARTIAL
from .family import WINDOWED, Family, Fields, Tensors, head_width, sliding_window
from .folds import KEYS, QUERIES, each, partly_turned, reordered, split_rows

# The family's own code, which transformers has too.
CODE = {
    "configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM", "modeling_phi3.Phi3ForSequenceClassification",
    "modeling_phi3.Phi3ForTokenClassification", "Xenova/gpt-4o",
}  # fmt: skip


def turning(config: Fields) -> int:
    """How many dimensions of a head turn: the first int(e x partial_rotary_factor)."""
    said = [block[PARTIAL] for block in (config, *(config.get(k) or {} for k in (NEW, OLD))) if isinstance(block, dict) and block.get(PARTIAL) is not None]
    for value in said:
        if not is_positive(value) or value > 1:
            raise ConfigError(f"{PARTIAL} {value!r} must be a number above 0 and at most 1")
        if value != said[0]:
            raise ConfigError(f"{PARTIAL} {said[0]!r} must equal {value!r}, which it is elsewhere in the file: remove the one that is wrong")
    width = head_width(config)
    dimensions = int(width * said[0]) if said else width
    if dimensions < 2 or dimensions % 2 or width % 2:
        raise ConfigError(f"{PARTIAL} {said[0] if said else 1} turns {dimensions} of the {width} dimensions of a head: both must be even")
    return dimensions


def fields(config: Fields) -> Fields:
    """A Llama's fields: `su` and `yarn` are older names of longrope here, and the part that turns is counted in pairs."""
    out = dict(config) | {"attention_bias": False, "mlp_bias": False}
    out.pop(PARTIAL, None)
    blocks = {}
    for name in (NEW, OLD):
        block = config.get(name)
        if isinstance(block, dict) and block:
            block = {k: v for k, v in block.items() if k != PARTIAL}
            kind = block.pop("type", None) or block.get("rope_type")
            block["rope_type"] = "longrope" if kind in ("su", "yarn", "longrope") else "default" if kind is None else kind
            blocks[name] = block
    if turning(config) != head_width(config):
        blocks = blocks or {NEW: {"rope_type": "default"}}
        blocks = {name: block | {PAIRS: turning(config) // 2} for name, block in blocks.items()}
    return out | blocks


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
    window=sliding_window,
)
