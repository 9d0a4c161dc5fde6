"""GGUF files of random checkpoints, written as llama.cpp's converter writes those of each family."""

import family_kit as kit
import numpy as np
import sources

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.5, "beta_slow": 0.25}
NAMES = {"olmo3": "olmo2", "glm": "chatglm"}  # where llama.cpp's is not the family's
MORE = {  # checkpoints beside the families' own
    ("qwen2", "yarn"): ("grouped", dict(rope_parameters=YARN)),
    ("olmo3", "yarn"): ("grouped", dict(rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}})),
    ("gemma", "grouped"): ("grouped", dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
}
# Seven layers: the sixth sees everything. A local base other than what is taken for a missing key; scores divided by the head's width, as llama.cpp has it.
SEVEN = dict(num_hidden_layers=7, query_pre_attn_scalar=16, head_dim=16, layer_types=["full_attention" if i == 5 else "sliding_attention" for i in range(7)])
GEMMA3 = {
    "both ropes": dict(sliding_window=8, rope_parameters={"full_attention": kit.TWO["full_attention"], "sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}),
    "window": dict(sliding_window=64, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 700.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
    "no window": dict(sliding_window=64, layer_types=["full_attention"] * 7, tie_word_embeddings=False),
}
FOUR = kit.SQUARE | dict(num_hidden_layers=5, tie_word_embeddings=True)


def scales(c):
    def keys(writer):
        writer.add_attention_scale(c.attention_multiplier)
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_logit_scale(c.logits_scaling)

    return keys


def gemma_keys(c):
    """What the converter writes beside a Llama's keys; a key that says what is taken without it is left out."""
    sliding, local = "sliding_attention" in c.layer_types, c.rope_parameters["sliding_attention"]["rope_theta"]

    def keys(writer):
        if sliding:
            writer.add_sliding_window(c.sliding_window)
        if local != 10000.0:
            writer.add_rope_freq_base_swa(local)
        scaled_rope(writer, c.rope_parameters["full_attention"])

    return keys


def written_gemma3(path, name, kind="F32", keys=None, **more):
    """Its converter adds 1 to the norms and gives the two after attention and MLP names of their own."""
    model = kit.checkpoint("gemma3_text", "grouped", **SEVEN | GEMMA3[name] | more)
    sources.write_gguf(path, model, kind, architecture="gemma3", keys=keys or gemma_keys(model.config), apart=True, raised=True, parts={
        "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"})  # fmt: skip
    return model


def scaled_rope(writer, rope):
    """What the converter's base class writes of a scaled rope."""
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(scaling("linear"))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(scaling("yarn"))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def converter_keys(c, writer):
    """What the converter's class of a family writes beside a Llama's keys."""
    rope = c.rope_parameters
    scaled_rope(writer, rope.get("full_attention", rope))
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    part = rope.get("partial_rotary_factor", 1.0)
    if c.model_type == "phi3":
        original, most = rope.get("original_max_position_embeddings", c.max_position_embeddings), c.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_dimension_count(int(part * c.hidden_size) // c.num_attention_heads)
        writer.add_sliding_window(c.sliding_window or 0)
        if rope["rope_type"] == "longrope":
            writer.add_rope_scaling_attn_factors((1 + np.log(most / original) / np.log(original)) ** 0.5)
    if c.model_type in ("glm", "glm4"):
        writer.add_rope_dimension_count(int(part * head_dim))
    if c.model_type in ("olmo3", "exaone4") and c.sliding_window is not None:
        writer.add_sliding_window(c.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])
    if c.model_type == "olmo3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if c.model_type == "exaone4":
        writer.add_vocab_size(c.vocab_size)


def converter_tensors(model):
    """Tensors that the converter makes of others, and the names of those it leaves out."""
    c, state, more = model.config, sources.weights(model), {}
    if c.model_type == "phi3" and c.rope_parameters["rope_type"] == "longrope":
        for name in ("long", "short"):
            more[f"rope_factors_{name}.weight"] = np.array(c.rope_parameters[f"{name}_factor"], np.float32)
    if c.model_type != "glm":
        return more, ()
    parts = [name for name in state if any(f".{x}_proj." in name for x in "qkv")]
    for i in range(c.num_hidden_layers):  # as the checkpoints that are older than the family have them
        for kind in ("weight", "bias"):
            more[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate([state[f"model.layers.{i}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
    return more, parts


def written(path, family, name, kind="F32", keys=None, drop=(), **more):
    """A model and its GGUF as llama.cpp's converter writes it, its names by the `gguf` package's table."""
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH

    if family == "gemma3":
        return written_gemma3(path, name, kind, keys, **more)
    label = NAMES.get(family, family)
    own, fields = MORE.get((family, name), (name, {}))
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} if family in ("qwen2", "qwen3", "granite", "smollm3") else {}
    more = plain | fields | more
    model = kit.checkpoint(family, own, **more) if own in kit.FAMILIES[family][1] else kit.checkpoint(family, "grouped", **FOUR, no_rope_layers=None, **more)

    def both(writer):
        if family == "granite" and keys is None:
            scales(model.config)(writer)
        converter_keys(model.config, writer)
        if keys:
            keys(writer)

    names = get_tensor_name_map(MODEL_ARCH[label.upper()], model.config.num_hidden_layers)
    made, left_out = converter_tensors(model)
    rename = {key: names.get_name(key, (".weight", ".bias")) for key in sources.weights(model)}
    sources.write_gguf(
        path, model, kind, architecture=label, keys=both, apart=family not in ("granite", "smollm3"), raised=family == "gemma", rename=rename,
        extra={key: value for key, value in made.items() if key not in drop}, drop=left_out,
    )  # fmt: skip
    return model


def scaling(name):
    from gguf.constants import RopeScalingType

    return RopeScalingType(name)
