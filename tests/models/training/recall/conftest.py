"""A chat model, toy-sized training, a recall with an encoder, and one with a random opening."""

import command_line
import encoder_kit
import pytest
import recall_kit
import tiny_model
import tiny_tokenizer
from recall_training_kit import SHOWN

from lm2.models.checkpoints.adapter import folder_key
from lm2.models.layout import open_folder
from lm2.models.recall import from_bert, save_recall
from lm2.models.training import brought, recall_jobs, retell_task, seek_task
from lm2.models.training import run as loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chat model whose memory folds after 24 tokens: in training nothing is ever folded."""
    return tiny_model.make(tmp_path_factory.mktemp("chat") / "model", ends=(tiny_tokenizer.IM_END,))


@pytest.fixture
def lm2(monkeypatch):
    return lambda *args: command_line.call(monkeypatch, args)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few texts, so that a step takes no time."""
    from lm2.models.training import people

    for module, fields in (
        (seek_task, dict(MESSAGES=6, OTHERS=4, ORDINARY=2, IDLE=3, WIDTH=16)),
        (recall_jobs, dict(DRAWN=20, AMONG=6)),
        (brought, dict(POOL=12, AMONG=(4, 6))),
        (retell_task, dict(SHOWN=SHOWN)),
        (loop, dict(EVERY=1, SAVE_EVERY=2)),
    ):
        for name, value in fields.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(seek_task.FinderMaps.__init__, "__defaults__", (16,))
    monkeypatch.setattr(people, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(people.answers, "questions", lambda seed: ["What is seven plus five?"])
    monkeypatch.setattr(people.answers, "tellings", lambda seed: ["I own a boat."])
    monkeypatch.setattr(people.talk, "ordinary", lambda split: ("Why is the sky blue?", "What is a prime number?"))
    monkeypatch.setattr(people.talk, "unknown", lambda: ("Where are my keys?",))


@pytest.fixture(scope="module")
def encoded(folder, tmp_path_factory):
    """A recall with an encoder, for `folder`."""
    place = tmp_path_factory.mktemp("encoded")
    (place / "bert").mkdir()
    encoder_kit.bert(place / "bert")
    config = open_folder(folder).config
    made = recall_kit.recall(config, encoder=from_bert(place / "bert", {}), backbone=("tiny", folder_key(open_folder(folder))))
    save_recall(place / "recall", config, made)
    return place / "recall"


@pytest.fixture(scope="module")
def begun(folder):
    """A recall with a random opening."""
    config = open_folder(folder).config
    return recall_kit.recall(
        config, lead=retell_task.LEAD, item=retell_task.ITEM, ask=retell_task.ASK, opening=recall_kit.opening(config, 9)
    )
