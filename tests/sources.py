"""Checkpoints to convert, made on the spot: tiny random Llamas as Hugging Face folders and as GGUF files, and tiny
tokenizers."""

import json
from pathlib import Path

import numpy as np

WORDS = "the quick brown fox jumps over a lazy dog and 12345 other dogs, isn't it? Yes! naïve café 日本語\n\n  def f(x):\n    return x\n"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def llama(vocab=96, hidden=64, ffn=96, layers=3, heads=4, kv=2, tied=True, seed=0, **fields):
    """A random transformers Llama in float32, evaluation mode; weights large enough that logits differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = dict(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(base | fields))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (1.0 if "norm" in name else 0.0))
    return model


def save_hf(model, folder: Path, shard_size="5GB", dtype=None):
    """Save as a Hugging Face folder; `dtype` a torch dtype."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size) if dtype else model.save_pretrained(
        folder, max_shard_size=shard_size
    )
    return folder


def weights(model):
    """float32 weights by Hugging Face name, without a tied head."""
    tied = model.config.tie_word_embeddings
    return {k: v.float().numpy() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}


def to_llama_cpp_rows(w, heads):
    """Row order that llama.cpp stores q and k in, written out row by row: pair r, half p goes from p * R + r to 2 r + p."""
    head_dim = w.shape[0] // heads
    out = np.empty_like(w)
    for h in range(heads):
        for r in range(head_dim // 2):
            for p in range(2):
                out[h * head_dim + 2 * r + p] = w[h * head_dim + p * (head_dim // 2) + r]
    return out


def gguf_name(name, more=()):
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    parts = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    }  # fmt: skip
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{(parts | dict(more))[stem]}.{kind}"


def write_gguf(path: Path, model, kind="F32", architecture="llama", extra=None, keys=None, drop=(), rename=None, apart=False, raised=False, parts=()):
    """Write `model` as GGUF. Matrices get ggml type `kind`, vectors F32. `keys`: function(writer) for metadata; `extra`: more tensors.
    apart: q and k keep Hugging Face's order of rows. raised: 1 is added to norms. parts: more names of a layer's tensors."""
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    c = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters.get("full_attention", c.rope_parameters)["rope_theta"])
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if head_dim != c.hidden_size // c.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if keys:
        keys(writer)
    stored = {}
    for name, w in (weights(model) | (extra or {})).items():
        if name in drop:
            continue
        heads = c.num_attention_heads if ".q_proj." in name else c.num_key_value_heads if ".k_proj." in name else 0
        w = to_llama_cpp_rows(w, heads) if heads and not apart else w
        w = w + np.float32(1) if raised and w.ndim == 1 and "norm" in name else w
        qtype = GGMLQuantizationType[kind if w.ndim == 2 else "F32"]
        stored[name] = (quantize(np.ascontiguousarray(w), qtype), qtype)
        label = (rename or {}).get(name) or (name if name in (extra or {}) else gguf_name(name, parts))
        writer.add_tensor(label, stored[name][0], raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def byte_level_tokenizer(pre_tokenizer, normalizer=None, size=400, **bpe):
    """A byte-level BPE trained on WORDS with the given pre-tokenizer; SPECIAL are ids 0, 1, 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(**bpe))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 8, trainer)
    return tokenizer


def add_byte_level(writer, tokenizer, pre, template=TEMPLATE):
    """Write a byte-level tokenizer's vocabulary into GGUF metadata as llama.cpp's converter does."""
    state = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda kv: kv[1])
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([t for t, _ in vocab])
    writer.add_token_types([3 if t in SPECIAL else 1 for t, _ in vocab])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(template)


def read_folder(folder: Path):
    """Tensors of a model folder as float32 arrays, and the dtype code of each."""
    from lm2.models.tensorfile import read_header, read_tensor, to_float32

    header = read_header(folder / "model.safetensors")
    out = {}
    with open(folder / "model.safetensors", "rb") as f:
        for name, info in header.tensors.items():
            out[name] = to_float32(read_tensor(f, info), info.dtype)
    return out, {name: info.dtype for name, info in header.tensors.items()}


def backbone_logits(folder: Path, ids):
    """Logits that transformers' own Llama computes from a converted folder's config and weights, memory left out; (b, t, v)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "architectures", "memory", "name", "dtype", "rope_theta", "rope_scaling"):
        fields.pop(key)
    tensors, _ = read_folder(folder)
    state = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items() if ".memory." not in k}
    model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if fields["tie_word_embeddings"] else set())
    model.tie_weights()
    with torch.no_grad():
        return model(torch.as_tensor(ids)).logits.numpy()


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.as_tensor(ids)).logits.float().numpy()
