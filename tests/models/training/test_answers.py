"""The backbone's own answers: greedy ids as the whole model gives them, each prompt as if it were alone."""

import random

import torch
import training_kit

from lm2.models.training import answers


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
