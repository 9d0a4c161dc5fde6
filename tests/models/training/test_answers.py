"""The backbone's own answers: greedy ids as the whole model gives them, each prompt as if it were alone, and the ordinary term of the loss."""

import random

import torch
import training_kit

from lm2.models.tasks.varied import Varied
from lm2.models.training import answers
from lm2.models.training.plan import Stage
from lm2.models.training.talk_task import TalkTask


def greedy(model, prompt, ends, count):
    ids = list(prompt)
    for _ in range(count):
        logits, _ = model(torch.tensor([ids]), model.initial_bank(1))
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_greedy_one_by_one_and_together():
    model = training_kit.model(chunk=24).eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(61) for _ in range(n)] for n in (5, 7, 5, 5, 20, 7)]
    plain = [greedy(model, p, (), min(6, 24 - len(p))) for p in prompts]
    assert answers.answer(model, prompts, (), 6) == plain and len(plain[4]) == 4, "a chunk's end ends an answer"
    ends = (plain[0][2],)
    assert answers.answer(model, prompts, ends, 6) == [greedy(model, p, ends, min(6, 24 - len(p))) for p in prompts]


def test_questions_are_a_function_of_the_seed():
    assert answers.questions(1, 60) == answers.questions(1, 60) != answers.questions(2, 60)
    assert len(set(answers.questions(1, 60))) == 60


def task(answered=(("Hi?", "Hello you."),)):
    model = training_kit.model(vocab=259, layers=3, memory_layers=(1, 2), chunk=128)
    made = TalkTask(
        model, training_kit.talks(size=96, answers=answered, books=["A long sentence of a book about the sea."]), 0, pools=(12, 8, 3)
    )
    for name, p in model.named_parameters():
        p.requires_grad_(".memory." in name)
    return made


def test_what_needs_no_memory_is_compared_with_the_backbone():
    """A memory that is heard costs divergence; one that is silent costs exactly none."""
    loud = task()
    figures = loud.step(Stage(1.0, 1, 2, 3), random.Random(1)).figures
    assert figures["kl"] > 1e-5
    silent = task()
    for i in silent.model.config.memory.layers:
        torch.nn.init.zeros_(silent.model.blocks[i].memory.o_proj.weight)
    terms = silent.step(Stage(1.0, 1, 2, 3), random.Random(1))
    assert abs(terms.figures["kl"]) < 1e-6 and terms.loss > 0


def test_a_fact_nobody_told_is_asked_only_where_nobody_told_it():
    varied = Varied()
    unknown = [(told, question, "I do not know.") for told, question in answers.unknown(0, varied, 40)]
    talks = training_kit.talks(size=96, unknown=unknown)
    texts = {tuple(talks._asked(question, answer, "", talks.headed).ids): told.kind for told, question, answer in unknown}
    kinds = {told.kind for told, _, _ in unknown}
    rng = random.Random(0)
    asked = [texts.get(tuple(talks.ordinary(rng, ()).ids)) for _ in range(300)]
    assert 60 < sum(kind is not None for kind in asked) < 180 and len(set(asked)) > 10
    some = sorted(kinds)[::2]
    assert not {texts.get(tuple(talks.ordinary(rng, some).ids)) for _ in range(300)} & set(some)
