"""A memory for every family is trained: one step each of both tasks for finished models, and the adapter opened again on the checkpoint it is for."""

import random
from dataclasses import replace

import family_kit as kit
import numpy as np
import pytest
import sources
import tiny_tokenizer
import torch
import training_kit

from lm2.models.checkpoints.adapter import folder_key, save_adapter
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.layout import open_folder
from lm2.models.training import start
from lm2.models.training.plan import Stage
from lm2.models.training.text_task import TextTask
from lm2.models.weights import load_model, slots_of

QUICK = ("phi3", "olmo3", "gemma3_text", "glm4")  # every word of a backbone, and a part of a head
FIRST = [pytest.param(family, next(iter(shapes)), marks=[] if family in QUICK else pytest.mark.slow) for family, (_, shapes) in kit.FAMILIES.items()]


@pytest.mark.parametrize(("family", "name"), FIRST)
def test_a_step_on_text_reaches_every_weight_of_the_memory_and_no_other(tmp_path, family, name):
    """Two chunks: what is read of the first decides the second's loss."""
    convert(kit.made(tmp_path / "src", family, name)[1], tmp_path / "dst", MemoryRequest(layers=(1,), slots=32, chunk=16, scale=1.0))
    model = load_model(open_folder(tmp_path / "dst")).train()
    for key, p in model.named_parameters():
        p.requires_grad_(".memory." in key)
    task = TextTask(model, lambda text: [b % 90 + 3 for b in text.encode()], ["The sea was quiet. " * 9], recompute=True)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    terms = task.step(Stage(1.0, 2, 2, 2), random.Random(0))
    terms.loss.backward()
    silent = [key for key, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.abs().max() > 0)]
    assert terms.loss.isfinite() and not silent
    optimizer.step()
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert changed == {key for key in before if ".memory." in key}


@pytest.mark.parametrize(("family", "name"), FIRST)
def test_an_adapter_is_opened_again_on_the_checkpoint_it_is_for(tmp_path, family, name):
    """Trained for a step, written, and put onto the checkpoint: never written it is the family's own model, written it is heard; another checkpoint is refused."""
    from lm2.models.errors import ConvertError
    from lm2.models.training.natural_task import NaturalTask

    sizes = dict(vocab_size=tiny_tokenizer.VOCAB, max_position_embeddings=512)
    source, src = kit.made(tmp_path / "src", family, name, **sizes)
    convert(src, tmp_path / "plain", MemoryRequest(slots=128, chunk=128))
    folder = open_folder(tmp_path / "plain")
    memory = start.adapter_memory(folder.config, (1, 2), 128, 4)
    model, key = start.warm(folder, memory, 0, False), folder_key(folder)
    task = NaturalTask(model, training_kit.people(), 0, (1, 1, 1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    terms = task.step(Stage(1.0, 1, 1, 1), random.Random(0))
    terms.loss.backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert terms.loss.isfinite() and changed and all(".memory." in n for n in changed)
    tensors = {n: s.detach().numpy() for n, s in slots_of(model) if ".memory." in n}
    save_adapter(tmp_path / "adapter", replace(folder.config, memory=replace(memory, trained=True)), key, "m", tensors, {})
    convert(src, tmp_path / "made", MemoryRequest(adapter=tmp_path / "adapter"))
    want = sources.logits(source, kit.IDS)
    assert kit.error(kit.backend_logits(tmp_path / "made", kit.IDS), want) < kit.GATE
    again = load_model(open_folder(tmp_path / "made"))
    with torch.no_grad():
        first, bank = again(torch.as_tensor(kit.IDS), again.initial_bank(2), 0)
        heard, _ = again(torch.as_tensor(kit.IDS), bank, kit.IDS.shape[1])
    assert kit.error(heard.numpy(), first.numpy()) > 1e-6
    other = kit.made(tmp_path / "other", family, name, seed=4, **sizes)[1]
    with pytest.raises(ConvertError, match="give its own adapter, or leave --adapter out"):
        convert(other, tmp_path / "no", MemoryRequest(adapter=tmp_path / "adapter"))
    assert np.isfinite(want).all()
