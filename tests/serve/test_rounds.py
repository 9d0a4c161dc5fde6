"""Whose turn it is: prompts before answers for a while, documents for half of the time, nobody for ever before others. Against a backend that takes time by a clock of its own."""

from collections import Counter

import numpy as np
import pytest

from lm2.runtime.serve.rounds import BURST, PROMPT, Job, Rounds
from lm2.runtime.serve.shared import PIECE, Shared

TOKEN, PIECES = 0.1, 0.5  # seconds of a round of tokens, of a piece


class Machine:
    """A backend that only takes time, and remembers who was fed: names of a call, in order."""

    config, longest = None, 1 << 20

    def __init__(self):
        self.now, self.fed = 0.0, []

    def extend(self, tokens, window, all_logits=False):
        self.now += TOKEN if tokens.shape[1] == 1 else PIECES
        self.fed.append((window,))
        return np.zeros((1, 1), np.float32), window

    def step(self, tokens, windows):
        self.now += TOKEN
        self.fed.append(tuple(windows))
        return np.zeros((len(windows), 1), np.float32), list(windows)


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def rounds(machine):
    return Rounds(lambda: machine.now)


def job(machine, name, prompt, answer):
    """A job that reads `prompt` tokens and answers with `answer`."""
    shared = Shared(machine, PIECE)

    def work():
        if prompt:
            shared.extend(np.zeros((1, prompt), np.int64), name)
        for _ in range(answer):
            shared.extend(np.zeros((1, 1), np.int64), name)

    return Job(work, lambda: False)


def ran(rounds, machine, jobs, most=10_000):
    """Who was fed, call by call, until all jobs ended or `most` rounds were made."""
    for one in jobs:
        rounds.add(one)
    while rounds.jobs and most:
        rounds.round()
        most -= 1
    return machine.fed


def test_prompts_that_come_together_are_read_before_anybody_answers(machine, rounds):
    names = [f"c{i}" for i in range(8)]
    fed = ran(rounds, machine, [job(machine, name, 60, 5) for name in names])
    assert [call[0] for call in fed[:8]] == names
    assert all(sorted(call) == names for call in fed[8:]) and len(fed) == 13


def test_prompts_without_end_leave_answers_a_fifth_of_the_time(machine, rounds):
    rounds.add(job(machine, "chat", 60, 10_000))
    for i in range(400):
        if sum(1 for one in rounds.jobs) < 8:
            rounds.add(job(machine, f"new{i}", 60, 0))
        rounds.round()
    fed = Counter(call[0] for call in machine.fed)
    assert fed["chat"] * TOKEN >= 0.19 * (machine.now - BURST / 0.25)


def test_a_chat_has_half_of_the_time_beside_a_document(machine, rounds):
    fed = ran(rounds, machine, [job(machine, "document", 100_000, 0), job(machine, "chat", 60, 500)], most=400)
    at = next(i for i, call in enumerate(fed) if call == ("chat",))
    counts = Counter(call[0] for call in fed[at:])
    assert counts["chat"] * TOKEN == pytest.approx(counts["document"] * PIECES, rel=0.1)


def test_prompts_do_not_keep_a_document_from_being_read(machine, rounds):
    rounds.add(job(machine, "document", 100_000, 0))
    for i in range(200):
        rounds.add(job(machine, f"new{i}", PROMPT, 0))
        rounds.round()
    assert Counter(call[0] for call in machine.fed)["document"] >= 90


def test_a_document_of_a_chat_is_a_document_after_its_first_tokens(machine, rounds):
    fed = ran(rounds, machine, [job(machine, "chat", 0, 100), job(machine, "document", 5 * PROMPT, 0)], most=30)
    first = [call[0] for call in fed]
    assert first[: PROMPT // PIECE] == ["document"] * (PROMPT // PIECE)
    assert first[PROMPT // PIECE :].count("chat") * TOKEN >= first[PROMPT // PIECE :].count("document") * PIECES
