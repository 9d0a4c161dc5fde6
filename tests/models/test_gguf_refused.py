"""GGUF files of the families that say what is not understood: refused by the file, the key and its value."""

import family_kit as kit
import numpy as np
import pytest
import sources
from gguf_kit import scaling, written

from lm2.models.checkpoints import gguf_families
from lm2.models.checkpoints.convert import convert
from lm2.models.errors import ConvertError


def key(name, value):
    """A writer of one key."""
    kinds = {int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array", bool: "add_bool"}
    return lambda writer: getattr(writer, kinds[type(value)])(name, value)


def yarn(**words):
    """A writer of yarn's keys, some said otherwise."""
    def keys(writer):
        writer.add_rope_scaling_type(scaling("yarn"))
        writer.add_rope_scaling_factor(4.0)
        for name, value in words.items():
            writer.add_float32(f"qwen3.rope.scaling.yarn_{name}", value)

    return keys


REFUSED = {
    "a window": ("qwen2", "grouped", lambda w: w.add_sliding_window(32), "qwen2.attention.sliding_window is 32: only plain qwen2 decoders"),
    "experts": ("qwen3", "grouped", lambda w: w.add_expert_count(8), "qwen3.expert_count is 8: only plain qwen3 decoders"),
    "experts of ernie4_5": ("ernie4_5", "grouped", lambda w: w.add_expert_count(64), "ernie4_5.expert_count is 64: only plain ernie4_5 decoders"),
    "longrope": ("qwen3", "grouped", lambda w: w.add_rope_scaling_type(scaling("longrope")), "rope.scaling.type 'longrope' .* is not supported: only linear, yarn and Llama 3.1"),
    "size of yarn": ("qwen3", "grouped", yarn(attn_factor=1.5), "qwen3.rope.scaling.yarn_attn_factor 1.5 must be 1.138629: lm2 computes no other"),
    "share of yarn": ("qwen3", "grouped", yarn(ext_factor=0.5), "qwen3.rope.scaling.yarn_ext_factor 0.5 must be 1"),
    "logarithm of yarn": ("qwen3", "grouped", yarn(log_multiplier=0.1), "qwen3.rope.scaling.yarn_log_multiplier is 0.1.*: only plain qwen3"),
    "yarn's key alone": ("qwen3", "grouped", key("qwen3.rope.scaling.yarn_ext_factor", 1.0), "qwen3.rope.scaling.yarn_ext_factor is 1.0: only plain qwen3"),
    "embeddings": ("qwen2", "grouped", lambda w: w.add_embedding_scale(12.0), "qwen2.embedding_scale is 12.0: only plain qwen2"),
    "a cap of logits": ("gemma3", "window", lambda w: w.add_final_logit_softcapping(30.0), "gemma3.final_logit_softcapping is 30.0: only plain gemma3 decoders"),
    "a cap of scores": ("gemma", "grouped", lambda w: w.add_attn_logit_softcapping(50.0), "gemma.attn_logit_softcapping is 50.0: only plain gemma decoders"),
    "a list of layers": ("gemma3", "window", lambda w: w.add_sliding_window_pattern([True] * 7), r"gemma3.attention.sliding_window_pattern is \[True.*expected a positive whole number"),
    "a pattern of nothing": ("gemma3", "window", lambda w: w.add_sliding_window_pattern(0), "gemma3.attention.sliding_window_pattern is 0, expected a positive whole number"),
    "a logit scale": ("granite", "untied", lambda w: w.add_logit_scale(-8.0), "granite.logit_scale is -8.0, expected a positive number"),
    "scores": ("seed_oss", "inner", lambda w: w.add_attention_scale(1.0), "seed_oss.attention.scale is 1.0: only plain seed_oss decoders"),
    "layers too few": ("olmo2", "grouped", lambda w: w.add_sliding_window_pattern([True, False]), "olmo2.attention.sliding_window_pattern must be a number or a list of 3 times true or false"),
    "a norm of layers": ("olmo2", "grouped", lambda w: w.add_clamp_kqv(8.0), "olmo2.attention.clamp_kqv is 8.0: only plain olmo2 decoders"),
    "a local base": ("exaone4", "grouped", lambda w: w.add_rope_freq_base_swa(60.0), "exaone4.rope.freq_base_swa is 60.0: only plain exaone4 decoders"),
    "layers that guess ahead": ("exaone4", "no window", lambda w: w.add_nextn_predict_layers(1), "exaone4.nextn_predict_layers is 1: only plain exaone4 decoders"),
    "places of pictures": ("glm4", "grouped", lambda w: w.add_rope_dimension_sections([8, 12, 12, 0]), r"glm4.rope.dimension_sections is \[8, 12, 12, 0\]: only plain glm4 decoders"),
    "a part of nothing": ("phi3", "grouped", key("phi3.rope.scaling.attn_factor", 1.19), "phi3.rope.scaling.attn_factor 1.19 without yarn or longrope is not supported"),
    "two scalings": ("phi3", "long", lambda w: w.add_rope_scaling_factor(4.0), "has linear rope scaling by 4.0 and rope_factors_short.weight: lm2 computes one or the other"),
}  # fmt: skip


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, refused):
    family, name, keys, message = REFUSED[refused]
    written(tmp_path / "m.gguf", family, name, keys=keys)
    with pytest.raises(ConvertError, match=f"m.gguf:? .*{message}"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_tensors_that_do_not_go_together_are_refused(tmp_path):
    """Half of longrope's factors, more of a head than there is, and llama.cpp's fused matrix in a family that has none."""
    written(tmp_path / "long.gguf", "phi3", "long", drop=("rope_factors_long.weight",))
    with pytest.raises(ConvertError, match="long.gguf has no tensor rope_factors_long.weight, its longrope scaling needs it"):
        convert(tmp_path / "long.gguf", tmp_path / "dst")
    model = kit.checkpoint("qwen2", "grouped")
    sources.write_gguf(tmp_path / "fused.gguf", model, architecture="qwen2", apart=True, extra={"blk.0.attn_qkv.weight": np.ones((96, 48), np.float32)})
    with pytest.raises(ConvertError, match="fused.gguf: tensor blk.0.attn_qkv.weight is not part of a plain qwen2 decoder"):
        convert(tmp_path / "fused.gguf", tmp_path / "dst")
    model = kit.checkpoint("phi3", "grouped")
    sources.write_gguf(tmp_path / "wide.gguf", model, architecture="phi3", apart=True, keys=key("phi3.rope.dimension_count", 14), parts=gguf_parts("phi3"))
    with pytest.raises(ConvertError, match="wide.gguf: phi3.rope.dimension_count 14 must equal the head size 12"):
        convert(tmp_path / "wide.gguf", tmp_path / "dst")


def gguf_parts(name):
    """Hugging Face's names of an architecture's parts -> llama.cpp's."""
    return {theirs: label for label, theirs in gguf_families.ARCHITECTURES[name].parts.items()}
