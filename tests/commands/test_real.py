"""The commands with the real SmolLM2-135M-Instruct, against transformers on the same weights. One thread: two are slower on a busy machine."""

import json

import pytest

pytestmark = pytest.mark.real
PROMPT = "The history of the city of Rome begins with"


def test_paris(lm2, smollm2):
    result = lm2("chat", smollm2, "--temp", "0", "--max-tokens", "40", "--threads", "1", stdin="What is the capital of France?\n")
    assert result.code == 0 and "Paris" in result.out and not result.err


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(lm2, smollm2):
    """200 tokens, fp32: `lm2 generate` and transformers' generate on the same folder's weights give the same ids."""
    settings = ("--temp", "0", "--max-tokens", "200", "--ignore-eos", "--backend", "torch", "--threads", "1")
    result = lm2("generate", smollm2, "--prompt", PROMPT, *settings, "--json")
    ours = json.loads(result.out)
    assert result.code == 0 and len(ours["tokens"]) == 200 and ours["tokens_written"] == 0 and ours["dtype"] == "float32"
    assert theirs(smollm2, PROMPT, 200) == ours["tokens"]


def theirs(folder, prompt, count):
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in config.items() if k not in ("memory", "model_type", "architectures", "dtype", "torch_dtype")}
    model = LlamaForCausalLM(LlamaConfig(**kept)).float().eval()
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items() if ".memory." not in k}
    missing, left = model.load_state_dict(weights, strict=False)
    assert not left and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    rope = getattr(model.config, "rope_parameters", None) or {"rope_theta": model.config.rope_theta}
    assert rope["rope_theta"] == 100000, "transformers reads another field than the one written"
    model.generation_config.eos_token_id = None
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.slow
def test_a_session_survives_a_restart(lm2, smollm2, tmp_path):
    """Two turns in two runs are the two turns of one run."""
    args = ("chat", smollm2, "--temp", "0", "--max-tokens", "12", "--threads", "1")
    lines = ["My name is Ada.\n", "What is my name?\n"]
    whole = lm2(*args, stdin="".join(lines))
    parts = [lm2(*args, "--session", tmp_path / "s.lm2s", stdin=line) for line in lines]
    assert whole.code == 0 and "".join(p.out for p in parts) == whole.out
    assert json.loads(lm2("info", tmp_path / "s.lm2s", "--json").out)["messages"] == 4
