"""Negative controls: a mirror that is wrong in one place must fail, and the place must be named."""

import parity_kit
import pytest

from lm2.models.errors import BackendError
from lm2.runtime.parity.inputs import Inputs
from lm2.runtime.parity.run import Settings, compare

pytest.importorskip("mlx.core")
# mutant, cell, chunk (from 0) and name of the first tensor that must disagree. A bank of zeros adds nothing: an output gate is missed in chunk 1.
WRONG = [
    (parity_kit.swap_gates, "gated", 0, "layers.0.memory.rows"),
    (parity_kit.swap_gates, "released-causal", 0, "layers.0.memory.rows"),
    (parity_kit.swap_gates, "released-chunk", 0, "layers.0.memory.rows"),
    (parity_kit.drop_output_gate, "gated", 1, "layers.0.memory.add"),
    (parity_kit.drop_output_gate, "gated-eye", 0, "layers.0.memory.add"),
    (parity_kit.shift_rows, "gated", 0, "layers.0.memory.bank"),
    (parity_kit.shift_rows, "gated-4T", 0, "layers.0.memory.bank"),
    (parity_kit.shift_rows, "released-causal", 0, "bank"),
    (parity_kit.wrong_theta, "gated", 0, "layers.0.attention"),
    (parity_kit.wrong_theta, "released-chunk", 0, "layers.0.attention"),
    (parity_kit.update_before_read, "gated", 0, "layers.0.memory.read"),
    (parity_kit.update_before_read, "gated-eye", 0, "layers.0.memory.read"),
    (parity_kit.deaf_to_topics, "gated-topics", 1, "layers.2.memory.read"),
    (parity_kit.drop_old_topics, "gated-topics", 2, "layers.2.memory.topics.bank"),
    (parity_kit.topics_of_everything, "gated-topics", 0, "layers.2.memory.topics.bank"),
    (parity_kit.topics_by_another_gate, "gated-topics", 0, "layers.2.memory.topics.bank"),
    (parity_kit.forget_a_key, "gated", 0, "logits in parts"),
]


@pytest.mark.parametrize(("mutant", "cell", "chunk", "name"), WRONG, ids=[f"{m.__name__}-{c}" for m, c, _, _ in WRONG])
def test_a_wrong_mirror_fails_and_is_explained(tmp_path, monkeypatch, mutant, cell, chunk, name):
    path = parity_kit.folder(tmp_path / "m", cell)
    settings = Settings(chunks=3, greedy=0, explain=True)
    right = compare(*parity_kit.sides(path), settings)
    assert right.passed and right.explanation.first is None, "the control of the control"
    mutant(monkeypatch)
    pair = compare(*parity_kit.sides(path), settings)
    print(pair.explanation.sentence)
    failed = [c.name for c in pair.checks if c.passed is False]
    assert failed and not pair.passed
    first = pair.explanation.first
    assert (first.chunk, first.name) == (chunk, name)
    assert f"chunk {chunk + 1}, {first.words}" in pair.explanation.sentence


FOLDS = [
    (parity_kit.stale_reads, "window.1.logits", {"window", "sessions"}),
    (parity_kit.forget_the_pointer, "window.2.layers.0.memory.bank", {"window", "sessions"}),
    (parity_kit.write_carried_tokens, None, {"window", "sessions"}),
    (parity_kit.pointer_off_by_one, None, {"one chunk", "window", "sessions"}),
]


@pytest.mark.parametrize(("mutant", "name", "sections"), FOLDS, ids=[m.__name__ for m, _, _ in FOLDS])
def test_a_window_that_is_wrong_fails(tmp_path, monkeypatch, mutant, name, sections):
    """Chunks by themselves are right on these mirrors: only folds and carried tokens show it, in the window and in sessions."""
    path = parity_kit.folder(tmp_path / "m", "gated-4T", talking=True)
    settings = Settings(chunks=3, greedy=40, explain=True)
    right = compare(*parity_kit.sides(path), settings)
    assert right.passed and right.explanation.first is None and any(d.place == "window" for d in right.explanation.tensors)
    mutant(monkeypatch)
    try:
        pair = compare(*parity_kit.sides(path), settings)
    except BackendError as error:
        assert mutant is parity_kit.write_carried_tokens and "fold first" in str(error), error
        return
    failed = {c.section for c in pair.checks if c.passed is False}
    print(failed, pair.explanation.sentence)
    assert sections <= failed
    if mutant is parity_kit.forget_the_pointer:
        assert any("token numbers must be from -1" in h.refused for h in pair.handovers), "a file whose pointer is behind its ledger is not opened"
        assert any("not opened: " in c.note for c in pair.checks if c.passed is False)
    if name:
        assert pair.explanation.first.name == name and pair.explanation.sentence.startswith("first disagreement: window, ")
        assert not failed & {"logits", "memory", "one chunk"}


def test_a_slide_that_loses_the_head_fails(tmp_path, monkeypatch):
    """With a head to lose: what the template puts before every conversation. Only the conversation shows it."""
    path = parity_kit.folder(tmp_path / "m", "gated-4T", talking=True)
    template = "{{ '<|im_start|>x\n' }}" + (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").write_text(template)
    settings = Settings(chunks=1, greedy=60)
    assert compare(*parity_kit.sides(path), settings).passed
    parity_kit.lose_the_head(monkeypatch)
    pair = compare(*parity_kit.sides(path), settings)
    assert {c.section for c in pair.checks if c.passed is False} == {"sessions"}


def test_a_conversation_without_a_slide_fails(tmp_path, monkeypatch):
    """A window so large that nothing slides: the report would say nothing of slides, and does not pass for it."""
    from lm2.runtime.parity import sessions

    monkeypatch.setattr(sessions, "window_size", lambda model: 2048)
    monkeypatch.setattr(Inputs, "reading", lambda self, count: "short")
    pair = compare(*parity_kit.sides(parity_kit.folder(tmp_path / "m", talking=True)), Settings(chunks=1, greedy=20))
    (check,) = (c for c in pair.checks if c.passed is False)
    assert check.name == "slides, in a window of 2048 tokens" and check.value == 0


@pytest.mark.parametrize("mutant", [parity_kit.swap_gates, parity_kit.shift_rows, parity_kit.drop_output_gate])
def test_a_trained_model_with_a_bank_of_nearly_nothing_still_fails(monkeypatch, mutant):
    """lm2-tiny's second bank holds numbers of 1e-10, which count as 1e-3: what is wrong shows in the first."""
    from lm2.runtime.loading import find_model

    path = find_model("lm2-tiny")
    settings = Settings(chunks=3, greedy=0)
    right = compare(*parity_kit.sides(path), settings)
    assert right.passed, [c for c in right.checks if c.passed is False]
    mutant(monkeypatch)
    assert not compare(*parity_kit.sides(path), settings).passed


def test_wrong_greedy_tokens_and_sessions_fail(tmp_path, monkeypatch):
    """The conversation alone tells a wrong mirror too, and so does a session that moves to it."""
    path = parity_kit.folder(tmp_path / "m")
    parity_kit.drop_output_gate(monkeypatch)
    pair = compare(*parity_kit.sides(path), Settings(chunks=1, greedy=200))
    failed = [c.name for c in pair.checks if c.section == "sessions" and c.passed is False]
    assert failed, [c for c in pair.checks if c.section == "sessions"]


def test_a_bank_that_changes_on_its_way_fails(tmp_path, monkeypatch):
    """from_host that loses the last bits: the bank is no longer the one that was saved."""
    import numpy as np

    from lm2.runtime.backends.mlx_backend import MLXBackend

    right = MLXBackend.from_host
    monkeypatch.setattr(MLXBackend, "from_host", lambda self, bank, n: right(self, (bank.view(np.uint32) & 0xFFFFFF00).view(np.float32), n))
    pair = compare(*parity_kit.sides(parity_kit.folder(tmp_path / "m")), Settings(chunks=2, greedy=20))
    check = next(c for c in pair.checks if c.name == "torch to mlx: numbers of the bank changed")
    assert check.passed is False and check.value > 0


def test_a_backend_that_cannot_trace_is_compared_by_logits_and_banks(tmp_path, monkeypatch):
    from lm2.runtime.backends.mlx_backend import MLXBackend

    monkeypatch.delattr(MLXBackend, "trace")
    parity_kit.swap_gates(monkeypatch)
    pair = compare(*parity_kit.sides(parity_kit.folder(tmp_path / "m")), Settings(chunks=2, greedy=0, explain=True))
    assert not pair.explanation.traced and pair.explanation.first.name == "layers.0.memory.bank"


def test_a_bank_that_swells_is_caught_where_banks_are_carried(tmp_path, monkeypatch):
    """A little is added at every commit, each time less than the gate: only what adds up shows it."""
    from lm2.runtime.backends.mlx_backend import MLXBackend

    right = MLXBackend.commit
    monkeypatch.setattr(MLXBackend, "commit", lambda self, chunk: (s := right(self, chunk))._replace(bank=s.bank * (1 + 9e-6)))
    pair = compare(*parity_kit.sides(parity_kit.folder(tmp_path / "m")), Settings(chunks=4, greedy=0))
    found = {(c.section, c.name): c for c in pair.checks}
    assert found["one chunk", "largest bank NMSE from the same bank"].passed
    assert not pair.passed and found["memory", "bank NMSE after chunk 4"].passed is False
