"""What `lm2 train` can do for a recall: the finder (--task seek), then the opening (--task retell), each written as a recall's folder.

Knows the recipes; the steps are seek_task.py's and retell_task.py's.
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.adapter import folder_key
from ..layout import TEMPLATE, ModelFolder
from ..opening import Opening
from ..recall import Finder, Recall, as_read, open_recall, save_recall
from ..tasks.varied import Varied
from ..text.dialogue import Dialogue
from ..text.rendered import encode_turn
from ..text.template import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..weights import load_model
from . import people, retell_task, together, vocabulary
from .jobs import Job
from .origin import origin
from .plan import Plan, TrainError
from .retell_task import RetellTask, Words
from .seek_task import TOKENS, SeekTask
from .tellings import Tellings
from .turns import chat_turns

MOST, SHARE, NEAR = 2, 0.4, 0.4
MISSED, DRAWN, AMONG = 0.05, 400, 50  # of questions for something told, those taken for idle; of so many, each among so many messages
Say = Callable[[str], None]


def job(plan: Plan, folder: ModelFolder, data: Path | None, device: str, recall: Path | None, out: Path, say: Say) -> Job:
    """--task seek or retell for a chat model. recall: what retell's finder is from, and its opening, where one was trained. Raises TrainError."""
    tokenizer = Tokenizer.load(folder.path)
    model = load_model(folder.without_memory(), torch.device(device)).requires_grad_(False)
    key, marked = folder_key(folder), people.marked(data, say)
    names, words = vocabulary.words(tokenizer.vocabulary())
    tellings, plain = Tellings(Varied(names, words), marked), partial(tokenizer.encode, plain=True)
    if recall is not None:
        open_recall(recall, folder.config)
    began = origin(model.config, folder, folder.path, [d.turns for d in marked], recall=recall)
    if plan.task == "seek":
        seek = SeekTask(model, tellings, plain, plan.seed)
        empty = Recall(
            seek.maps.finder(), _none(), retell_task.LEAD, retell_task.ITEM, retell_task.ASK, TOKENS, MOST, 0.0, SHARE, NEAR,
            (folder.config.name, key), {},
        )  # fmt: skip
        opening = RetellTask(model, tellings, _words(folder, tokenizer), seek.ids, empty, {}, plan.seed, True).maps.opening()  # before hours of steps

        def write(path: Path, record: Mapping[str, Any]) -> None:
            finder = seek.maps.finder()
            margin = calibrated(finder, tellings, seek.ids, plan.seed)
            save_recall(path, folder.config, empty._replace(finder=finder, opening=opening, margin=margin, training={"seek": dict(record)}))

        return Job(seek, write, "recall", began)
    if recall is None:
        raise TrainError("--task retell needs --recall: the folder that --task seek wrote")
    begun = open_recall(recall, folder.config)
    if begun.backbone[1] != key:
        raise TrainError(f"{recall} is a recall of {begun.backbone[0]} (backbone {begun.backbone[1][:12]}), {folder.path} has another ({key[:12]}): train one with --task seek")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(plain(as_read(text)))[: begun.tokens]

    with together.first_alone():
        answers = people.own_answers(model, key, tokenizer, chat_turns(_template(folder, tokenizer)), out, plan.seed, say)
    retell = RetellTask(model, tellings, _words(folder, tokenizer), ids, begun, answers, plan.seed, False)

    def finish(path: Path, record: Mapping[str, Any]) -> None:
        save_recall(path, folder.config, begun._replace(opening=retell.maps.opening(), training={**begun.training, "retell": dict(record)}))

    return Job(retell, finish, "recall", began)


def calibrated(finder: Finder, tellings: Tellings, ids: Callable[[str], tuple[int, ...]], seed: int) -> float:
    """The margin at which MISSED of drawn questions are taken to ask for nothing told. Drawn from the split that `tellings` is of."""
    rng, found = random.Random(f"{seed} margin"), []
    for _ in range(DRAWN):
        telling = tellings.draw(rng)
        passages = [*telling.texts, *(tellings.message(rng, 0.5) for _ in range(AMONG))]
        scores, nothing = finder.scores(ids(rng.choice(telling.asked).question), [ids(text) for text in passages])
        found.append(float(scores.max()) - nothing)
    return round(sorted(found)[int(MISSED * DRAWN)], 3)


def _none() -> Opening:
    return Opening(np.zeros((0, 0, 0, 0), np.float16), np.zeros((0, 0, 0, 0), np.float16))


def _template(folder: ModelFolder, tokenizer: Tokenizer) -> ChatTemplate:
    template = ChatTemplate.load(folder.path, tokenizer)
    if template is None:
        raise TrainError(f"{folder.path} has no {TEMPLATE}: a recall needs a chat model")
    return template


def _words(folder: ModelFolder, tokenizer: Tokenizer) -> Words:
    """How a session puts its turns (runtime/session/wording.py)."""
    turns = Dialogue(_template(folder, tokenizer))

    def turn(content: str, first: bool) -> list[int]:
        return encode_turn(tokenizer, turns, content, first)

    closing = tuple(tokenizer.encode(turns.close()))
    if not closing:
        raise TrainError(f"{folder.path / TEMPLATE} does not end answers: a recall needs a template that does")
    return Words(partial(turn, first=False), partial(turn, first=True), partial(tokenizer.encode, plain=True), closing)
