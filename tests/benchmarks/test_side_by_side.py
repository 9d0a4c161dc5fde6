"""benchmarks/side_by_side.py on a tiny model: what stands on each side, and the table."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_model

from lm2.runtime.evaluation import natural
from lm2.runtime.evaluation.full_bank import FullBank
from lm2.runtime.loading import load

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "side_by_side.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(natural, "FILLERS", 40)
    monkeypatch.setattr(natural, "FILLER_TOKENS", 3)
    spec = importlib.util.spec_from_file_location("benchmarks_side_by_side", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "QUESTIONS", 4)
    monkeypatch.setattr(module, "EACH", 2)
    return module


def test_questions_after_full_memories(script, tmp_path):
    folder = tiny_model.make(tmp_path / "tiny", window=512, chunk=200, ends=())
    model, alone = (replace(load(folder, "torch", device="cpu", threads=1, memory=m), eos=frozenset()) for m in (True, False))
    bank = FullBank(model, 0)
    found = script.pairs(bank, alone, 4)
    assert [(number, question) for number, question, *_ in found] == [(n, q) for n in (0, 1) for q in bank.questions(n)[:2]]
    assert all(plain and after for *_, plain, after in found)
    session = bank.conversation(0).session
    assert session.fork().say(found[0][1], 4).strip() == found[0][3], "the right side is what the session says"
    text = script.markdown([*found, (1, "a|b", "One. Two.", "One. Three.")])
    assert "| 1 | a/b | One. Two. | One. Three. |" in text and "of 5 answers" in text
