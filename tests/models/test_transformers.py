"""The backbone against transformers' LlamaForCausalLM on the same weights, memory closed: float32, relative L2 <= 1e-6."""

import dataclasses

import pytest
import tiny
import torch
from compare import relative_l2

from lm2.models.config import RopeConfig
from lm2.models.weights import random_model, slots_of

GATE = 1e-6
CASES = {
    "plain": {},
    "untied with biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
    "llama3 rope": {"rope": RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 16), "max_position_embeddings": 2048},
    "linear rope": {"rope": RopeConfig(10000.0, "linear", 4.0)},
}


def reference(model):
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    fields = {
        k: v
        for k, v in c.to_dict().items()
        if k not in ("memory", "model_type", "architectures", "dtype", "name", "rope_scaling", "rope_theta")
    }
    llama = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="eager")).eval()
    weights = {n: t for n, t in slots_of(model) if ".memory." not in n}
    if c.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    missing, left = llama.load_state_dict(weights, strict=False)
    assert not missing and not left
    return llama


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_same_logits(case):
    config = dataclasses.replace(tiny.config(chunk=64), **CASES[case])
    if config.head_dim != 8:
        config = dataclasses.replace(config, memory=dataclasses.replace(config.memory, head_dim=config.head_dim))
    model = random_model(config, seed=1)
    ids = torch.randint(0, config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(2))
    want = reference(model)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    got, _ = model(ids, model.initial_bank(2))
    print(f"relative L2 {relative_l2(got, want):.3g} gate {GATE:g}")
    assert relative_l2(got, want) <= GATE
    logits, chunk = [], model.start(model.initial_bank(2))
    for piece in ids.split(17, dim=1):
        out, chunk = model.extend(piece, chunk, model.tables(), all_logits=True)
        logits.append(out)
    assert relative_l2(torch.cat(logits, 1), want) <= GATE


@torch.inference_mode()
def test_a_wrong_theta_fails():
    """Negative control: the gate notices rope_theta 10000 read where 500 was meant."""
    config = tiny.config(chunk=64)
    model = random_model(config, seed=1)
    wrong = random_model(dataclasses.replace(config, rope=RopeConfig(10000.0)), seed=1)
    ids = torch.randint(0, config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(2))
    assert (
        relative_l2(wrong(ids, wrong.initial_bank())[0], reference(model)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits) > 1e-3
    )
