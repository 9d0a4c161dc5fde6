"""What quantisation costs, measured before an export is kept: the same text through the float32 graph and the quantised one.

Knows one chunk of one sequence. A full report is `lm2 parity`'s business.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..models.config import LM2Config
from ..models.layout import TOKENIZER
from ..models.text.tokenizer import Tokenizer

TOKENS = 256
TEXT = """The harbour wakes before the town does. At four in the morning the first boats come in, their decks bright with ice and herring, and the
women who sort the catch are already waiting under the lamps with their knives and their wooden boxes. Nobody speaks much. The price was agreed
yesterday, and the weather, which is the only other subject, can be seen by anyone who looks up. By six the lorries have gone, the stones have been
washed, and a stranger who arrived then would find nothing but gulls, a smell of salt, and an old man mending a net with a needle made of bone.

Question: How many legs does a spider have, and how is that different from an insect? Answer: A spider has eight legs, while an insect has six. To sort
a list of numbers in Python, call sorted(numbers); to sort it in place, call numbers.sort(). Both take a key function and a flag called reverse."""


class Cost(NamedTuple):
    """Over `tokens` positions: mean KL divergence from the float32 logits in nats, and the share of positions with the same likeliest token."""

    kl: float
    top1: float
    tokens: int


def measure(config: LM2Config, reference: Path, quantised: Path) -> Cost:
    """Compare two exported graphs (model.onnx files) of one model. The text needs `quantised`'s tokenizer.json; without it ids are drawn (seed 0)."""
    ids = _ids(config, quantised.parent / TOKENIZER)
    a, b = (_log_probabilities(file, ids) for file in (reference, quantised))
    return Cost(float((np.exp(a) * (a - b)).sum(-1).mean()), float((a.argmax(-1) == b.argmax(-1)).mean()), ids.size)


def _ids(config: LM2Config, tokenizer: Path) -> np.ndarray:
    count = min(TOKENS, config.memory.chunk)
    if not tokenizer.is_file():
        return np.random.default_rng(0).integers(0, config.vocab_size, (1, count))
    ids = Tokenizer.load(tokenizer.parent).encode(TEXT, add_special=True)[:count]
    return np.array([[i for i in ids if i < config.vocab_size]], np.int64)


def _log_probabilities(file: Path, ids: np.ndarray) -> np.ndarray:
    """(t, v) float64, of a chunk that begins with an empty memory."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # state is not bound here, and ONNX Runtime says so for each
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    state = json.loads(session.get_modelmeta().custom_metadata_map["lm2.state"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    feeds = {i.name: np.zeros([{"batch": 1, "window": ids.size}.get(s, s) for s in i.shape], kinds[i.type]) for i in session.get_inputs() if i.name in state}
    feeds |= {"input_ids": ids, "new_chunk": np.array([1]), "logits_from": np.array([0])}
    feeds |= {i.name: np.array([0]) for i in session.get_inputs() if i.name == "carry"}
    logits = session.run(["logits"], feeds)[0][0].astype(np.float64)  # (t, v)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
