"""Runs in half precision: what is not trained needs no more than the checkpoint has."""

import random

import tiny
import torch

from lm2.models.layout import open_folder
from lm2.models.training.plan import Stage
from lm2.models.training.text_task import TextTask
from lm2.models.weights import layers_in_half, load_model, random_model, save_folder

STORY = "Once there was a fox. It ran over the hill and met a dog. " * 3
MATRICES = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def test_layers_that_are_not_trained_stay_in_bfloat16(tmp_path):
    """Half a run: a checkpoint in bfloat16 is not widened, and the step has the same loss and gradients to the last bit. One in float32 is not rounded."""
    losses, gradients = [], []
    made = random_model(tiny.config(rows=2), 3)
    for dtype in ("bfloat16", "float32"):
        save_folder(made, tmp_path / dtype, dtype)
    for dtype, frozen in (("bfloat16", True), ("bfloat16", False), ("float32", True)):
        folder = open_folder(tmp_path / dtype)
        model = load_model(folder, frozen=layers_in_half(folder)) if frozen else load_model(folder)
        narrow = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
        assert narrow == ({f"layers.{i}.{m}.weight" for i in range(3) for m in MATRICES} if dtype == "bfloat16" and frozen else set())
        for name, p in model.named_parameters():
            p.requires_grad_(".memory." in name)
        task = TextTask(model.train(), lambda text: [b % 60 for b in text.encode()], [STORY], recompute=True)
        with torch.autocast("cpu", torch.bfloat16):
            terms = task.step(Stage(1.0, 2, 2, 2), random.Random(0))
        terms.loss.backward()
        losses.append(float(terms.loss.detach()))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert losses[0] == losses[1] and all(torch.equal(g, gradients[1][name]) for name, g in gradients[0].items())
    assert losses[0] != losses[2], "the control: other weights"
