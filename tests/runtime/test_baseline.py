"""Baselines in an evaluation: reading streams side by side equals reading each alone, the window keeps the last chunks, nothing but `lm2 eval` runs one."""

import json

import numpy as np
import pytest
import tiny
import tiny_tokenizer
import torch
from command_line import call

from lm2.models.baselines.config import baseline_config
from lm2.models.baselines.folder import save_baseline
from lm2.models.training.compare import fresh_baseline
from lm2.runtime.evaluation.baseline import SegmentReader, grouped

CHUNK, SEGMENT = 96, 200


def made(kind="rmt"):
    shape = tiny.config(vocab=tiny_tokenizer.VOCAB, chunk=CHUNK, output_projection=False)
    model = fresh_baseline(baseline_config(kind, shape, 3, SEGMENT), 1).eval().requires_grad_(False)
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return model


def drawn(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(tuple(rng.integers(0, 256, n).tolist()) for n in stream) for stream in lengths]


STREAMS = drawn([[90, 96, 50, 96, 96], [5], [], [96, 96, 96]])
QUESTIONS = [q[0] for q in drawn([[9], [12], [9], [7]], seed=1)]


@pytest.mark.parametrize("kind", ["rmt", "none"])
def test_streams_side_by_side_are_those_alone(kind):
    """Against segments one after another, in a batch of one, and greedy answers from the whole text."""
    reader = SegmentReader(made(kind), (), 4)
    together = reader.ask(reader.read(STREAMS), QUESTIONS)
    for stream, question, answer in zip(STREAMS, QUESTIONS, together, strict=True):
        parts = grouped(stream, SEGMENT)
        text = (parts[-1] if parts else ()) if kind == "rmt" else reader._window(stream)
        memory, said = reader.model.begin(1), []
        for part in parts[:-1] if kind == "rmt" else ():
            memory, _ = reader.model.segment(memory, torch.tensor([part]), torch.tensor([len(part)]))
        for _ in range(4):
            asked = torch.tensor([[[*question, *said]]])
            _, h = reader.model.segment(memory, torch.tensor([text], dtype=torch.long), torch.tensor([len(text)]), asked, torch.tensor([[len(text)]]))
            said.append(int(reader.model.lm_head(h[0, 0, -1]).argmax()))
        assert answer == tuple(said)
    others = reader.ask([reader.initial] * 4, QUESTIONS)
    assert others[2] == together[2] and others != together, "what was read is heard, and nothing is where nothing was read"


def test_the_window_keeps_the_last_whole_chunks():
    reader = SegmentReader(made("none"), (), 4)
    assert reader._window(STREAMS[0]) == STREAMS[0][3] + STREAMS[0][4]
    assert reader._window(STREAMS[3]) == STREAMS[3][1] + STREAMS[3][2]
    assert [len(p) for p in grouped(STREAMS[0], SEGMENT)] == [186, 146, 96]


def test_an_answer_ends_and_stays_within_a_chunk():
    model = made()
    free = SegmentReader(model, (), 12).ask([SegmentReader(model, (), 1).initial], [QUESTIONS[0]])[0]
    assert SegmentReader(model, (free[2],), 12).ask([SegmentReader(model, (), 1).initial], [QUESTIONS[0]])[0] == free[: free.index(free[2])]
    long = tuple(range(CHUNK - 2))
    assert len(SegmentReader(model, (), 12).ask([SegmentReader(model, (), 1).initial], [long])[0]) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A baseline's folder with a byte tokenizer."""
    place = tmp_path_factory.mktemp("m") / "rmt"
    save_baseline(made(), place)
    return tiny_tokenizer.make(place)


def test_eval_runs_it(folder, tmp_path, monkeypatch):
    (tmp_path / "babi").mkdir()
    lines = "".join(f"1 Mary{i} moved to the garden.\n2 Where is Mary{i}?\tgarden\t1\n" for i in range(60))
    (tmp_path / "babi" / "qa1_x_train.txt").write_text(lines)
    args = ("eval", folder, "--task", "babilong", "--data", tmp_path, "--lengths", "0k", "--samples", "3", "--answer-tokens", "3", "--threads", "1")
    result = call(monkeypatch, (*args, "--json"))
    report = json.loads(result.out)
    assert result.code == 0 and report["cells"][0]["count"] == 3 and report["model"]["name"] == "lm2 rmt", result
    assert "RMT: 3 memory tokens carried over segments of 200 tokens" in call(monkeypatch, args).out
    call(monkeypatch, (*args, "--backend", "mlx")).fails("a baseline (rmt)", "torch")
    for task in ("recall", "harm", "mmlu", "perplexity"):
        call(monkeypatch, ("eval", folder, "--task", task, "--data", tmp_path)).fails("a baseline (rmt)", f"not {task}")


@pytest.mark.parametrize(
    "command",
    [("chat",), ("generate",), ("info",), ("serve", "--port", "0"), ("export", "OUT"), ("convert", "OUT"), ("parity", "--backends", "torch,onnx"), ("inspect", "--out", "OUT.html"),
     ("train", "--task", "babilong", "--out", "OUT"), ("train", "--task", "text", "--data", "DATA", "--out", "OUT")],
)  # fmt: skip
def test_nothing_else_opens_it(folder, tmp_path, monkeypatch, command):
    name, *rest = command
    rest = [str(tmp_path / "out") if a == "OUT" else str(tmp_path / "o.html") if a == "OUT.html" else str(tmp_path) if a == "DATA" else a for a in rest]
    more = ("--prompt", "x") if name == "generate" else ()
    result = call(monkeypatch, (name, folder, *rest, *more))
    result = result._replace(err="".join(result.err.splitlines(True)[-1:]))  # serve says first where it listens
    result.fails("lm2-baseline" if name == "convert" else "only `lm2 eval --task babilong` opens it")
    assert not (tmp_path / "out" / "model").exists()
