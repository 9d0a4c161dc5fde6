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
from ..checkpoints.source import sha256
from ..layout import TEMPLATE, ModelFolder
from ..opening import Opening
from ..recall import Finder, Recall, Use, as_read, from_bert, open_recall, save_recall
from ..tasks.varied import Varied
from ..text.dialogue import Dialogue
from ..text.rendered import encode_turn
from ..text.template import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..weights import load_model
from . import brought, people, retell_task, vocabulary
from .brought import Brought
from .jobs import Job
from .origin import origin
from .plan import Plan, TrainError
from .read_task import ReadTask
from .retell_task import RetellTask, Words
from .seek_task import TOKENS, SeekTask
from .tellings import Tellings

TRUST = 1.0  # what reading says counts as much as nearness
MOST, SHARE, NEAR = 2, 0.4, 0.4
USE = Use(8, 1.2, -5.0, 5.0)  # of a reader, chosen on the conversations that are held out and known (docs/decisions.md)
DOUBT = -1.0  # a passage is believed unless it is e times likelier not to tell it
# Of messages that ask for nothing told, each among AMONG messages: those for which passages are read, of DRAWN.
CALLED, DRAWN, AMONG = 0.1, 400, 50
CALLED_TO_READ = 0.25  # with a reader, which looks first and is quick
Say = Callable[[str], None]


def job(plan: Plan, folder: ModelFolder, data: Path | None, device: str, recall: Path | None, encoder: Path | None, say: Say) -> Job:
    """--task seek or retell for a chat model. recall: what retell's finder is from, and its opening, where one was trained. encoder: a BERT's folder, which
    becomes part of what seek writes. Raises TrainError, and ModelFileError for a folder that is no BERT's."""
    tokenizer = Tokenizer.load(folder.path)
    model = load_model(folder.without_memory(), torch.device(device)).requires_grad_(False)
    key, marked = folder_key(folder), people.marked(data, say)
    names, words = vocabulary.words(tokenizer.vocabulary())
    tellings, plain = Tellings(Varied(names, words), marked), partial(tokenizer.encode, plain=True)
    if recall is not None:
        open_recall(recall, folder.config)
    began = origin(model.config, folder, folder.path, [d.turns for d in marked], recall=recall)
    if plan.task == "seek":
        turns = _words(folder, tokenizer)
        seek = SeekTask(model, tellings, plain, turns.first("")[0], plan.seed)
        empty = Recall(
            seek.maps.finder(), _none(), retell_task.LEAD, retell_task.ITEM, retell_task.ASK, brought.UNSAID,
            TOKENS, 0.0, brought.READ, TRUST, 0.0, MOST, SHARE, NEAR, (folder.config.name, key), {},
        )  # fmt: skip
        opening = RetellTask(model, tellings, turns, seek.ids, empty, plan.seed, True).maps.opening()  # before hours of steps
        looks = None if encoder is None else from_bert(encoder, {"folder": encoder.name, "sha256": sha256(encoder / "model.safetensors")})

        def write(path: Path, record: Mapping[str, Any]) -> None:
            finder = seek.maps.finder()
            margin = calibrated(finder, tellings, seek.ids, plan.seed)
            save_recall(path, folder.config, empty._replace(finder=finder, opening=opening, margin=margin, encoder=looks, training={"seek": dict(record)}))

        return Job(seek, write, "recall", began)
    if recall is None:
        raise TrainError(f"--task {plan.task} needs --recall: the folder that --task seek wrote")
    begun = open_recall(recall, folder.config)
    if begun.backbone[1] != key:
        raise TrainError(f"{recall} is a recall of {begun.backbone[0]} (backbone {begun.backbone[1][:12]}), {folder.path} has another ({key[:12]}): train one with --task seek")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(plain(as_read(text)))[: begun.tokens]

    if plan.task == "read":
        if begun.encoder is None:
            raise TrainError(f"{recall} has no encoder, whose words --task read reads: make it by --task seek --encoder BERT")
        read = ReadTask(model, begun.encoder, partial(asked, Brought(tellings, ids, begun, plan.seed, apart=True)), plan.seed, begun.reader)

        def keep(path: Path, record: Mapping[str, Any]) -> None:
            margin = calibrated(begun.finder, tellings, ids, plan.seed, CALLED_TO_READ)
            save_recall(path, folder.config, begun._replace(reader=read.reader(USE, record), margin=margin, training={**begun.training, "read": dict(record)}))

        return Job(read, keep, "recall", began)
    retell = RetellTask(model, tellings, _words(folder, tokenizer), ids, begun, plan.seed, False)

    def finish(path: Path, record: Mapping[str, Any]) -> None:
        opening = retell.maps.opening()
        save_recall(path, folder.config, begun._replace(opening=opening, unsaid=brought.UNSAID, doubt=DOUBT, training={**begun.training, "retell": dict(record)}))

    return Job(retell, finish, "recall", began)


def asked(brought: Brought, rng: random.Random) -> tuple[str, str, str, str]:
    """A question, a message, what that replies to, and what of the message answers, nothing where nothing does (ReadTask)."""
    sample = brought.sample(rng, pairs=0.0)
    return sample.question, *sample.passages[0], sample.value


def calibrated(finder: Finder, tellings: Tellings, ids: Callable[[str], tuple[int, ...]], seed: int, called: float = CALLED) -> float:
    """The margin at which passages are read for a share of `called` of drawn messages that ask for nothing told. Drawn from the split that `tellings` is of."""
    rng, found = random.Random(f"{seed} margin"), []
    for _ in range(DRAWN):
        message, among = _idle(rng, tellings)
        scores, nothing = finder.scores(ids(message), [ids(text) for text in among])
        found.append(float(scores.max()) - nothing)
    return round(sorted(found)[-1 - int(called * DRAWN)], 3)


def _idle(rng: random.Random, tellings: Tellings) -> tuple[str, list[str]]:
    """A message that asks for nothing told, and AMONG others."""
    message = tellings.idle(rng, 0.0)
    return message, [text for text in (tellings.message(rng, 0.5).texts[-1] for _ in range(AMONG)) if text != message]


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
