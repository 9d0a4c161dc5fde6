"""GGUF files through `lm2 convert`. Right means: weights, fields and vocabulary are what the gguf package reads from the same bytes."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import kit
import numpy as np
import sources
from gguf_tree import build, parse
from mutate import JUNK, NUMBERS, TEXTS, mutate_bytes, mutate_value

from lm2.models.checkpoints.convert import convert
from lm2.models.errors import LM2Error
from lm2.models.layout import open_folder

from . import Target

FIELDS = {"hidden_size": "llama.embedding_length", "intermediate_size": "llama.feed_forward_length", "num_hidden_layers": "llama.block_count",
          "num_attention_heads": "llama.attention.head_count", "num_key_value_heads": "llama.attention.head_count_kv",
          "max_position_embeddings": "llama.context_length", "head_dim": "llama.attention.key_length", "vocab_size": "llama.vocab_size"}  # fmt: skip
KEYS = [*FIELDS.values(), "general.alignment", "general.architecture", "split.count", "llama.expert_count", "llama.rope.freq_base", "llama.rope.scaling.type",
        "llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.dimension_count", "llama.attention.layer_norm_rms_epsilon", "llama.logit_scale",
        "llama.attention.value_length", "llama.attention.sliding_window", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.unknown_token_id", "tokenizer.chat_template"]  # fmt: skip
NAMES = ["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.attn_q.bias", "blk.9.attn_q.weight", "rope_freqs.weight", "x", "blk.0.attn_q_norm.weight"]


def target(place: Path) -> Target:
    from tokenizers import pre_tokenizers

    tokenizer = sources.byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), size=300)
    size = dict(hidden=32, ffn=32, layers=2)

    def byte_level(writer: Any) -> None:
        sources.add_byte_level(writer, tokenizer, "gpt-2")

    def pieces(writer: Any) -> None:
        words = [*"▁abcdefghijklmnopqrstuvwxyz", "▁t", "he", "▁the"]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
        writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    forms = [("F32", None, 96), ("Q8_0", byte_level, tokenizer.get_vocab_size()), ("Q4_0", pieces, 289), ("F16", None, 96)]
    seeds = []
    for kind, keys, vocab in forms:
        sources.write_gguf(place / "seed.gguf", sources.llama(vocab=vocab, tied=kind != "F16", **size), kind, keys=keys)
        seeds.append((place / "seed.gguf").read_bytes())
        kit.need(build(parse(seeds[-1])) == seeds[-1], "taken apart and put together it is another file")
    file, made = place / "fuzzed.gguf", place / "made"

    def check(data: bytes) -> str:
        file.write_bytes(data)
        shutil.rmtree(made, ignore_errors=True)
        try:
            convert(file, made)
        except LM2Error as error:
            kit.need(not made.exists(), "refused, and the folder is there")
            return kit.check_refusal(error) + f": {error}"
        _check(file, made)
        return ""

    return Target("gguf", seeds, mutate, check)


def mutate(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    try:
        tree = parse(data)
    except (ValueError, IndexError, KeyError, MemoryError, OverflowError):
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        _change(rng, tree)
    try:
        return build(tree)
    except (ValueError, TypeError, OverflowError):
        return mutate_bytes(rng, data)


def _change(rng: Random, tree: dict[str, Any]) -> None:
    pairs, tensors = tree["pairs"], tree["tensors"]
    kind = rng.randrange(10)
    if kind <= 3 and pairs:
        pair = rng.choice(pairs)
        value = pair[2]
        if isinstance(value, list):
            if value and rng.random() < 0.7:
                i = rng.randrange(len(value))
                value[i] = _like(rng, value[i])
            else:
                pair[2] = mutate_value(rng, value)
        else:
            pair[2] = _like(rng, value)
    elif kind == 4 and pairs:
        rng.choice(pairs)[0] = rng.choice(KEYS)
    elif kind == 5 and pairs:
        i = rng.randrange(len(pairs))
        rng.choice((lambda: pairs.pop(i), lambda: pairs.insert(i, list(pairs[i])), lambda: pairs.append([rng.choice(KEYS), *rng.choice(((4, 7), (6, 0.5), (8, "x"), (7, True)))])))()
    elif kind == 6 and tensors:
        rng.choice(tensors)[0] = rng.choice(NAMES)
    elif kind == 7 and tensors:
        dims = rng.choice(tensors)[1]
        if dims:
            rng.choice((dims.reverse, dims.pop, lambda: dims.append(1), lambda: dims.__setitem__(0, rng.choice(NUMBERS) % 2**64)))()
    elif kind == 8 and tensors:
        tensor = rng.choice(tensors)
        tensor[2] = rng.choice((0, 1, 2, 3, 6, 7, 8, 12, 14, 24, 28, 30, 39, 99))
    elif tensors:
        tensor = rng.choice(tensors)
        tensor[3] = rng.choice((tensor[3] + 32, max(0, tensor[3] - 32), 0, rng.choice(tensors)[3], 2**63))


def _like(rng: Random, value: Any) -> Any:
    """A value of the same kind, mostly."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, max(0, value - 1), value * 2, value // 2, rng.choice(NUMBERS)))
    if isinstance(value, float):
        return rng.choice((value * 2, -value, 0.0, float("nan"), float("inf"), 1e-30, 1e30, 1.0))
    return rng.choice((value + "x", value[:-1], rng.choice(TEXTS), value.upper())) if isinstance(value, str) else rng.choice(JUNK)


def _check(file: Path, made: Path) -> None:
    from gguf import GGUFReader, dequantize

    try:
        reader = GGUFReader(file)
    except Exception as error:
        raise kit.Wrong(f"converted, the gguf package says {type(error).__name__}: {error}") from None
    given = {key: field.contents() for key, field in reader.fields.items()}
    config = open_folder(made).config
    for name, key in FIELDS.items():
        if key in given:
            kit.need(getattr(config, name) == given[key], f"{key} {given[key]} became {name} {getattr(config, name)}")
    kit.need(np.float32(config.rms_norm_eps) == np.float32(given["llama.attention.layer_norm_rms_epsilon"]), "layer_norm_rms_epsilon")
    kit.need(np.float32(config.rope.theta) == np.float32(given.get("llama.rope.freq_base", 10000.0)), "rope.freq_base")
    have, _ = sources.read_folder(made)
    ours = {sources.gguf_name(n): n for n in have if ".memory." not in n and not n.endswith(".bias")}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight" or tensor.name not in ours:
            kit.need(tensor.name == "rope_freqs.weight" or tensor.name.endswith(".bias") or tensor.name == "output.weight", f"{tensor.name} is lost")
            continue
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape([int(n) for n in reversed(tensor.shape)])
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            pairs = value.reshape(-1, config.head_dim // 2, 2, value.shape[-1])
            value = pairs.swapaxes(1, 2).reshape(value.shape)
        kit.need(np.array_equal(have[ours[tensor.name]], value) and np.isfinite(value).all(), f"{tensor.name} has other values, or some that are not finite")
    tokens = given.get("tokenizer.ggml.tokens")
    if (made / "tokenizer.json").is_file():
        model = json.loads((made / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        kit.need(model["vocab"] == {t: i for i, t in enumerate(tokens)}, "the vocabulary is another")
    else:
        kit.need(tokens is None, "the tokenizer is lost")
    for key in ("eos", "eot", "eom"):
        found = given.get(f"tokenizer.ggml.{key}_token_id")
        kit.need(found is None or found in config.eos_token_id, f"{key}_token_id {found} is lost")
