"""Toy recalls in training: what its tests share beside fixtures."""

import numpy as np
import tiny
import tiny_model
import tiny_tokenizer
import torch

from lm2.models.layout import open_folder
from lm2.models.tasks.varied import Varied
from lm2.models.text.tokenizer import Tokenizer
from lm2.models.training import recall_jobs
from lm2.models.training.retell_task import RetellTask
from lm2.models.training.tellings import Tellings
from lm2.models.weights import load_model, random_model, save_folder

ONE = ("--threads", "1")
SHOWN = ((("I keep two cats.",), "What do I keep?", "Two cats."),)
FINDER = ("asking", "telling", "asking_step", "telling_step", "prior", "nothing", "mix", "sharpness")


def arrays(recall):
    return {**recall.finder._asdict(), **recall.opening._asdict()}


def same(a, b, names=None):
    x, y = arrays(a), arrays(b)
    return all(np.array_equal(x[n], y[n]) for n in names or x)


def tasks(folder, split="train"):
    tokenizer = tiny_tokenizer.library()
    model = load_model(open_folder(folder).without_memory(), torch.device("cpu")).requires_grad_(False)
    tellings = Tellings(Varied(), (), split)
    return model, tellings, lambda text: tokenizer.encode(text).ids


def retell(folder, recall, fresh=False):

    model, tellings, encode = tasks(folder)
    words = recall_jobs._words(open_folder(folder), Tokenizer.load(folder))
    return RetellTask(model, tellings, words, lambda text: tuple(encode(" " + text.strip().lower()))[:64], recall, 0, fresh)


def decoder(folder, kind):
    """A chat model of one of the tiny cells, or with a decoder that is no Llama's."""
    if kind in tiny_model.CELLS:
        return tiny_model.make(folder, kind)
    config = tiny.config(vocab=tiny_tokenizer.VOCAB, backbone=tiny.BACKBONES[kind], window=64, name="tiny")
    save_folder(random_model(config, 1), folder)
    return tiny_tokenizer.make(folder)
