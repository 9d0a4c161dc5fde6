"""RMT and the Llama without memory: a segment against plain causal passes, segments of a batch, equal batches and parameters for all that is compared, folders."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import training_kit
from compare import assert_close
from training_kit import BOOK

from lm2.models.baselines.config import SEGMENT, baseline_config, is_baseline, parameters
from lm2.models.baselines.folder import load_baseline, save_baseline
from lm2.models.config import read_config
from lm2.models.errors import ConfigError, ModelFileError
from lm2.models.tasks import babi
from lm2.models.training import start
from lm2.models.training.answer_task import MemoryAnswers, SegmentAnswers
from lm2.models.training.asked import AskedStreams, Batch
from lm2.models.training.compare import fresh_baseline
from lm2.models.training.plan import Stage
from lm2.models.training.segments import segments

SIZE = 40


def shape(vocab=96):
    return replace(tiny.config(vocab=vocab, chunk=SIZE, rows=4, layers=3, memory_layers=(1, 2), output_projection=False), eos_token_id=(2,))


def baseline(kind="rmt", seed=1, **fields):
    made = fresh_baseline(baseline_config(kind, shape(), **({"tokens": 3, "segment": 48} | fields)), seed)
    for p in made.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return made


TOLD = {
    "qa6": tuple(babi.parse(["1 Mary moved to the garden.", "2 John went to the office.", "3 Is Mary in the garden?\tyes\t1", "4 Mary went to the kitchen.",
                             "5 Is Mary in the garden?\tno\t4"], "qa6")),
    "qa4": tuple(babi.parse(["1 The office is north of the kitchen.", "2 What is north of the kitchen?\toffice\t1"], "qa4")),
}  # fmt: skip


def streams(words=None, tasks=("qa1", "qa2", "qa4", "qa6")):
    return AskedStreams(words or training_kit.Words(), SIZE, TOLD, BOOK, tasks)


def drawn(seed=0, b=4, chunks=5) -> Batch:
    return streams().batch(random.Random(seed), b, chunks, 2, books=0.5, often=0.8)


def plain(model, x):
    """Final states of embeddings x (b, n, d) by an ordinary causal pass, positions from 0."""
    cos, sin = (t[: x.shape[1]] for t in model.tables(model.config.max_position_embeddings))
    for block in model.blocks:
        x = block.finish(x, block.self_attn(block.input_layernorm(x), cos, sin, lambda k, v: (k, v)))
    return model.norm(x)


@torch.no_grad()
def test_a_segment_is_memory_text_memory_read_causally():
    """The published form, one stream at a time; and a question instead of the memory that is written."""
    model = baseline()
    lengths, ids = [9, 4, 0], torch.randint(96, (3, 9), generator=torch.Generator().manual_seed(0))
    asked = torch.randint(96, (3, 2, 5), generator=torch.Generator().manual_seed(1))
    seen = torch.tensor([[9, 5], [4, 4], [0, 0]])
    memory = model.begin(3) + torch.arange(3.0)[:, None, None]
    after, h = model.segment(memory, ids, torch.tensor(lengths), asked, seen)
    for i, length in enumerate(lengths):
        text = model.embed_tokens(ids[i : i + 1, :length])
        whole = plain(model, torch.cat((memory[i : i + 1], text, memory[i : i + 1]), dim=1))[:, -3:]
        assert_close("memory", after[i : i + 1].numpy(), (whole if length else memory[i : i + 1]).numpy(), 2e-6, 1e-5)
        for k in range(2):
            question = model.embed_tokens(asked[i : i + 1, k])
            alone = plain(model, torch.cat((memory[i : i + 1], text[:, : seen[i, k]], question), dim=1))[:, -5:]
            assert_close("question", h[i : i + 1, k].numpy(), alone.numpy(), 2e-6, 1e-5)
    wrong = plain(model, torch.cat((memory[:1], model.embed_tokens(ids[:1, :5]), model.embed_tokens(asked[:1, 0])), dim=1))[:, -5:]
    assert (h[:1, 0] - wrong).abs().max() > 1e-3, "a question that saw four tokens fewer would show"


@torch.no_grad()
def test_without_memory_a_segment_is_lm2_without_memory_layers():
    model = baseline("none")
    ids = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(0))
    after, h = model.segment(model.begin(2), ids[:, :7], torch.tensor([7, 7]), ids[:, None, 7:], torch.full((2, 1), 7))
    logits, _ = model(ids, model.initial_bank(2))
    assert after.shape == (2, 0, 32)
    assert_close("logits", model.lm_head(h[:, 0]).numpy(), logits[:, 7:].numpy(), 2e-5, 1e-5)


def test_segments_hold_each_streams_chunks_and_questions():
    batch = drawn()
    parts = segments(batch, 64)
    for i in range(len(batch.ids)):
        text = [t for part in parts for t in part.text[i, : part.lengths[i]].tolist()]
        assert text == [t for c in range(5) for t in batch.ids[i, c, : batch.lengths[i, c]].tolist()]
        want, begun = [], 0
        for c in range(5):
            begun += batch.lengths[i, c]
            if batch.asked[c] is not None and i in batch.asked[c].streams:
                row = batch.asked[c].streams.index(i)
                want += [(begun, batch.asked[c].targets[row, k].max(), t) for k, t in enumerate(batch.asked[c].tasks[row]) if t]
        got, before = [], 0
        for part in parts:
            got += [(before + part.seen[i, k], part.targets[i, k].max(), t) for k, t in enumerate(part.tasks[i]) if t]
            before += part.lengths[i]
        assert got == want and max(part.lengths[i] for part in parts) <= 64


def test_a_file_asks_before_more_is_told():
    """`Is Mary in the garden?` is yes until she goes: the chunk ends where the file asks."""
    words, asked = training_kit.Words(), set()
    made = streams(words, ("qa6",))
    for seed in range(40):
        told = ""
        for chunk in made.stream(random.Random(seed), 4, 2, seed % 2 == 1):
            told += words.text(chunk.ids)
            for question in chunk.questions:
                assert question.answer == ("no" if "Mary went to the kitchen" in told else "yes")
                asked.add(question.answer)
    assert asked == {"yes", "no"}
    with pytest.raises(ValueError, match="no stories of qa9"):
        streams(tasks=("qa9",))


def test_all_that_is_compared_gets_the_same_batches_and_parameters(monkeypatch):
    config = start.babi_config(1536, 0)
    counts = [sum(p.numel() for p in fresh_baseline(baseline_config(kind, config), 0).parameters()) for kind in ("rmt", "none")]
    assert all(abs(count - parameters(config)) <= 3 * 128 * 6 / 2 for count in counts), (counts, parameters(config))
    seen = []
    right = AskedStreams.batch
    monkeypatch.setattr(AskedStreams, "batch", lambda self, *args: seen.append(right(self, *args)) or seen[-1])
    models = (MemoryAnswers(start.fresh(shape(), 0), streams()), SegmentAnswers(baseline(), streams()), SegmentAnswers(baseline("none"), streams()))
    terms = [[task.step(Stage(1.0, 1, 4, 3, 0.5), rng) for _ in range(3)] for task in models for rng in [random.Random(5)]]
    for other in (seen[3:6], seen[6:]):
        for a, b in zip(seen[:3], other, strict=True):
            assert np.array_equal(a.ids, b.ids) and [q and q.ids.tolist() for q in a.asked] == [q and q.ids.tolist() for q in b.asked]
    assert len({tuple((t.tokens, tuple(sorted((k, len(v)) for k, v in t.hits.items()))) for t in row) for row in terms}) == 1
    assert all(t.quiet == 0 and torch.isfinite(t.loss) for row in terms for t in row)


def test_the_loss_goes_back_through_the_memory_of_all_segments():
    model = baseline()
    ids = torch.randint(96, (1, 30), generator=torch.Generator().manual_seed(0))
    first = model.embed_tokens(ids[:, :10]).detach().requires_grad_(True)
    memory = model.begin(1)
    embed = model.embed_tokens.forward
    for number, begin in enumerate((0, 10)):
        model.embed_tokens.forward = (lambda text: first) if number == 0 else embed
        memory, _ = model.segment(memory, ids[:, begin : begin + 10], torch.tensor([10]))
    _, h = model.segment(memory, ids[:, 20:25], torch.tensor([5]), ids[:, None, 25:], torch.tensor([[5]]))
    h.sum().backward()
    assert first.grad is not None and first.grad.abs().max() > 1e-6
    none = baseline("none")
    _, alone = none.segment(none.begin(1), ids[:, 20:25], torch.tensor([5]), ids[:, None, 25:], torch.tensor([[5]]))
    assert none.memory_tokens is None and torch.isfinite(alone).all()


def test_a_folder_says_what_it_is_and_nothing_else_opens_it(tmp_path):
    for kind in ("rmt", "none"):
        model = baseline(kind)
        save_baseline(model, tmp_path / kind)
        again, mark = load_baseline(tmp_path / kind)
        assert again.baseline == model.baseline and len(mark) == 64 and is_baseline(tmp_path / kind)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
        with pytest.raises(ConfigError, match=rf"a baseline \({kind}\).*only `lm2 eval --task babilong` opens it"):
            read_config(tmp_path / kind)
    assert not is_baseline(tmp_path)
    assert load_baseline(tmp_path / "rmt")[1] != load_baseline(tmp_path / "none")[1]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("kind", "armt", "must be one of rmt, none"), ("tokens", 0, "tokens 0"), ("segment", 3, "at least a message"), ("segment", SEGMENT, "max_position_embeddings")],
)
def test_wrong_configs_of_baselines(tmp_path, field, value, words):
    save_baseline(baseline(), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    d = json.loads(file.read_text())
    d["baseline"][field] = value
    file.write_text(json.dumps(d))
    with pytest.raises(ConfigError, match=words) as error:
        load_baseline(tmp_path / "m")
    assert str(file) in str(error.value)


def test_weights_of_another_baseline_are_refused(tmp_path):
    save_baseline(baseline(), tmp_path / "a")
    save_baseline(baseline("none"), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match=r"a.model.safetensors.* tensor \S+ is .* calls for"):
        load_baseline(tmp_path / "a")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(ModelFileError, match="b.model.safetensors"):
        load_baseline(tmp_path / "b")
