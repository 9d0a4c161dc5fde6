"""The real SmolLM2 in its window: as long as nothing has left it, and the memory is closed, answers are those of transformers on the whole text.

Without OpenBLAS preloaded MLX is twenty times slower on Linux: then its messages are a third as long.
"""

import json
import warnings

import mlx_kit
import numpy as np
import pytest

from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampling
from lm2.runtime.session.session import Session

pytestmark = pytest.mark.real
STORY = (
    "The harbour town of {0} lies where the river meets the sea. In {1} its people built a lighthouse of grey stone, and every evening the keeper "
    "climbed its stairs with a lamp of oil. Ships came with wool, salt and timber, and left with fish and glass. When the railway came, most of the "
    "trade went inland, and the quay grew quiet; but the lighthouse still stands, and on clear nights it can be seen from the hills beyond {0}. "
)
TOWNS = (("Arlen", 1702), ("Bresk", 1745), ("Corvey", 1788), ("Dunmar", 1831), ("Eskby", 1866))
NEAR = 2e-3  # logits: closer than this, float32 in another order may choose either


def theirs(folder, ids):
    """Logits (t, v) of transformers on the same backbone."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in config.items() if k not in ("memory", "model_type", "architectures", "dtype", "torch_dtype")}
    model = LlamaForCausalLM(LlamaConfig(**kept)).float().eval()
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items() if ".memory." not in k}
    missing, left = model.load_state_dict(weights, strict=False)
    assert not left and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_answers_in_the_window_are_those_of_transformers(smollm2, backend):
    """Five messages of some 320 tokens and their answers; every token greedy under transformers' logits of the whole text."""
    pytest.importorskip("mlx.core")
    times = 3 if backend == "torch" or mlx_kit.fast() else 1
    if times == 1:
        warnings.warn("THE WINDOW OF THE REAL MODEL WAS FILLED BY A THIRD IN MLX: preload OpenBLAS (docs/mlx.md)", stacklevel=1)
    model = load(smollm2, backend, device="cpu", dtype="float32", memory=False)
    session = Session(model, sampling=Sampling(temperature=0.0), seed=0)
    closing, chosen, messages = len(model.encode(session.wording.dialogue.close())), {}, []
    for town, year in TOWNS:
        message = STORY.format(town, year) * times + "What is this town called?"
        answer = session.say(message, 8)
        tokens = session.reply.tokens
        begin = session.at.filled - closing - len(tokens)
        chosen |= {begin + i: token for i, token in enumerate(tokens)}
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    ids = session.at.tokens + session.at.pending
    assert model.window == 2048 and session.at.carried == 0 and 480 * times - 40 < len(ids) < 2048
    assert model.text.decode(ids) == model.template.render(messages), "the whole conversation, as the chat template writes it"
    assert all(ids[at] == token for at, token in chosen.items()) and len(chosen) >= 16
    whole = theirs(smollm2, ids)
    for at, token in chosen.items():
        logits = whole[at - 1]
        assert logits.max() - logits[token] <= NEAR, (backend, at, token, int(np.argmax(logits)))
