"""Which fields of a Llama's config.json are read, which change no number, and which say that the model is more than a plain Llama.

Knows names and values that switch a thing off. What is in neither list is refused by name: a field that is not understood may change
what the model computes.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from .families.family import Family
from .families.llama import LLAMA

READ = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "original_max_position_embeddings", "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id",
    "eos_token_id", "dtype", "torch_dtype",
}  # fmt: skip
# Training, bookkeeping and speed: no number of a forward pass depends on them.
HARMLESS = {
    "architectures", "transformers_version", "initializer_range", "use_cache", "pretraining_tp", "name_or_path", "name", "torchscript",
    "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "tokenizer_class", "task_specific_params", "prefix",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward",
    "gradient_checkpointing", "attn_implementation", "experts_implementation", "max_sequence_length", "max_seq_len", "model_max_length",
    "seq_length", "is_llama_config", "keys_to_ignore_at_inference", "is_decoder", "model_name", "base_model", "description",
    "author", "language", "license", "transformers.js_config", "neftune_noise_alpha", "tie_encoder_decoder",
}  # fmt: skip
# Settings of generation that older folders keep in config.json; nothing reads them there.
GENERATION = {
    "max_length", "min_length", "max_new_tokens", "min_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
    "renormalize_logits", "penalty_alpha",
}  # fmt: skip
PATTERNS = re.compile(
    r".*_token_id|(bos|eos|pad|unk|sep|cls|mask)_token|.*_version|.*dropout|.*_pdrop|initializer_.*|unsloth_.*|(_|use_)?flash_att.*"
    r"|_(name_or_path|commit_hash|auto_class|from_model_config|attn_implementation.*|experts_implementation.*)"
)
# Fields of other decoders that do nothing at 1; every other unknown field does nothing when it is null, false, 0 or empty.
FACTORS = {
    "logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "lm_head_multiplier", "embedding_scale",
    "residual_scale", "rotary_pct", "scale_emb", "key_multiplier",
}  # fmt: skip
COUNTS = {"num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"}
SWITCHES = ("causal", "is_causal", "use_rope", "use_rotary", "scale_attn_weights", "use_rms_norm")  # a Llama has them on
WINDOWS = ("sliding_window", "max_window_layers")


def check_fields(config: Mapping[str, Any], file: Path, also: str = "", family: Family = LLAMA) -> None:
    """Raise ConvertError, naming the file, the field, its value and the remedy, for a field that is not understood.

    also: a pattern of further names that the caller understands. family: what the model says it is; what that understands goes before what is said here.
    """
    head_dim, plain = _head_dim(config), "Llama" if family is LLAMA else family.model_type
    special: dict[str, Callable[[Any], bool]] = {
        "attention_multiplier": lambda x: x == head_dim**-0.5,
        "query_pre_attn_scalar": lambda x: x == head_dim,
        "layer_types": lambda x: isinstance(x, list) and all(t == "full_attention" for t in x),
        "mlp_layer_types": lambda x: isinstance(x, list) and all(t == "dense" for t in x),
        **dict.fromkeys(SWITCHES, lambda x: x is True),
        **dict.fromkeys(("activation_function", "hidden_activation"), lambda x: x in ("silu", "swish")),
        **dict.fromkeys(FACTORS, lambda x: x == 1),
        **dict.fromkeys(COUNTS, lambda x: x in (0, 1)),
        **dict.fromkeys(WINDOWS, lambda x: not x or config.get("use_sliding_window") is False),
        **family.understood,
    }
    for name, value in config.items():
        if value is None or (name in READ and name not in family.understood) or name in HARMLESS or name in GENERATION or PATTERNS.fullmatch(name):
            continue
        if also and re.fullmatch(also, name):
            continue
        if special[name](value) if name in special else value in (False, 0, "", [], {}):
            continue
        if name == "quantization_config":
            method = value.get("quant_method") if isinstance(value, Mapping) else "?"
            raise ConvertError(f"{file}: {name} ({method}) is not supported: convert the unquantised checkpoint or a GGUF")
        if name == "auto_map":
            raise ConvertError(
                f"{file}: auto_map names code of the model's own, {_short(value)}, which lm2 does not run: "
                f"if the model computes what a plain {plain} does, remove auto_map"
            )
        raise ConvertError(
            f"{file}: {name} {_short(value)} is not a plain {plain}'s, and may change what the model computes: "
            "remove the field if it changes no number; if it does, lm2 cannot convert this model"
        )


def _head_dim(config: Mapping[str, Any]) -> float:
    head, hidden, heads = (config.get(k) for k in ("head_dim", "hidden_size", "num_attention_heads"))
    return (
        head if isinstance(head, int) and head else hidden / heads if isinstance(hidden, int) and isinstance(heads, int) and heads else 1.0
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
