"""Small things to train: models, stories of one-word tokens, conversations with a tiny tokenizer, and a task that costs nothing."""

import random

import tiny
import tiny_tokenizer
import torch

from lm2.models.lm2 import LM2
from lm2.models.tasks.varied import Varied
from lm2.models.training.plan import Plan, Stage
from lm2.models.training.run import Terms
from lm2.models.training.speech import ASSISTANT, END, USER
from lm2.models.training.stories import Stories
from lm2.models.weights import random_model


def model(seed=1, rows=2, **fields) -> LM2:
    """A gated model of 3 layers, memories in 0 and 2, trainable, with a random memory that is heard. rows: chunks until a row is written again."""
    made = random_model(tiny.config(rows=rows, **fields), seed)
    return made.train().requires_grad_(True)


class Words:
    """An encoder with one id a word or mark, made as words come; 0 is never given."""

    def __init__(self):
        self.ids = {}

    def __call__(self, text):
        if text in (USER, ASSISTANT, END):
            words = [text]
        else:
            words = text.replace(".", " .").replace("?", " ?").split()
        return [self.ids.setdefault(w, len(self.ids) + 1) for w in words]

    def text(self, ids):
        names = {i: w for w, i in self.ids.items()}
        return " ".join(names[i] for i in ids)


def stories(encode=None, size=40, fixed=(), book=(), weights=None) -> Stories:
    return Stories(encode or Words(), size, fixed, book, weights or {"qa1": 1.0})


BOOK = [f"The old captain of ship number {i} looked at the quiet sea for a long time." for i in range(20)]
QA4 = ("qa4", ["The office is north of the kitchen.", "The garden is south of the kitchen."], [("What is north of the kitchen?", "office")])
DIALOGUE = [("user", "How do I cook rice?"), ("assistant", "In water."), ("user", "For how long?"), ("assistant", "Ten minutes.")]


def chatml(role, content):
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def chatml_ids(turns):
    """The same with one token a byte, written by hand."""
    ids = []
    for role, content in turns:
        ids += [tiny_tokenizer.IM_START, *f"{role}\n{content}".encode(), tiny_tokenizer.IM_END, 10]
    return ids


PLAN = Plan("toy", 12, 1e-2, 3, (Stage(0.5, 1, 2, 2), Stage(1.0, 2, 3, 2)), warmup=3)


class Toy:
    """A task on random tokens whose next draw depends on the random generator, torch's too, and on a counter of its own."""

    aids = None

    def __init__(self, seed=1, wait=0.0):
        self.model = model(seed)
        self.count = 0
        self.wait = wait
        self.seen = []

    def step(self, stage, rng):
        import time

        time.sleep(self.wait)
        self.count += 1
        chunks = rng.randint(stage.least, stage.most)
        ids = torch.tensor([[rng.randrange(61) for _ in range(9)] for _ in range(stage.batch)])
        self.seen.append(ids)
        bank, losses = self.model.initial_bank(stage.batch), []
        for c in range(chunks):
            logits, bank = self.model(ids[:, :-1], bank, c)
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
        noise = torch.rand(()) * self.count
        loss = torch.stack(losses).mean() * (1 + 0.01 * noise)
        return Terms(loss, loss.new_zeros(()), {"noise": float(noise)}, {"toy": [rng.random() < 0.5]}, ids.numel())

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


def weights(task):
    return {name: p.detach().clone() for name, p in task.model.named_parameters()}


def rng(seed=0):
    return random.Random(seed)


def people(marked=(), others=(DIALOGUE,), books=(), split="train", encode=None, answers=None):
    """Threads in ChatML on the byte tokenizer, with short answers of their own."""
    from lm2.models.tasks.natural import talk
    from lm2.models.training.threads import Threads

    tokenizer = tiny_tokenizer.library()
    encode = encode or (lambda text: tokenizer.encode(text).ids)
    opening = "<|im_start|>assistant\n"
    answers = answers or {q: f"Answer {i}." for i, q in enumerate((*talk.ordinary(split)[:20], *talk.unknown()[:20]))}
    return Threads(
        encode("<|im_start|>system\nBe kind.<|im_end|>\n"),
        lambda role, content: encode(chatml(role, content)),
        lambda content: encode(chatml("user", content) + opening),
        lambda content: encode(content + "<|im_end|>"),
        encode,
        Varied(),
        answers,
        marked,
        others,
        books,
        split=split,
    )


def natural_task(seed=0, sizes=(4, 2, 4), **fields):
    """A small task of `people` on a tiny model whose memory alone is trained."""
    from lm2.models.training.natural_task import NaturalTask

    made = model(vocab=tiny_tokenizer.VOCAB, layers=4, memory_layers=(1, 2), chunk=512, rows=4, **fields)
    for name, p in made.named_parameters():
        p.requires_grad_(".memory." in name)
    return NaturalTask(made, people(books=["A long sentence of a book about the sea and the people who live beside it."]), seed, sizes)
