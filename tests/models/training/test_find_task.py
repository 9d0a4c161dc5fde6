"""Finding alone: only queries and keys move, rows are what a fold would write, and looking at the right row is learned."""

import random

import pytest
import torch
import training_kit

from lm2.models.training import banks, prefixed
from lm2.models.training.find_task import FindTask
from lm2.models.training.plan import Stage

STAGE = Stage(1.0, 1, 1, 1)


def task(seed=0, **sizes):
    model = training_kit.model(vocab=259, layers=4, memory_layers=(1, 2), chunk=512, rows=4, content="token")
    return FindTask(model, training_kit.people(), seed, **({"messages": 12, "at_once": 8} | sizes))


def test_rows_are_those_that_are_written():
    made = task(messages=3)
    pool = made.draw(0)
    threads, rng = made.threads, random.Random("0 find 0")
    ids, _ = next(m for m in iter(lambda: threads.messages(rng), None) if m)[0]
    thread = threads.thread(random.Random(0), 1)
    thread.ids, thread.head = [*threads.head, *ids], len(threads.head)
    with torch.no_grad():
        kept = banks.keep(made.model, thread, [None, None], made.tables)
        for j, memory in enumerate(made.memories):
            written = memory.bank_norm(banks.write(made.memories, kept).new[j])
            assert torch.allclose(pool.rows[0][j], written, atol=1e-5), j


def test_queries_and_keys_alone_are_trained():
    made = task()
    terms = made.step(STAGE, random.Random(0))
    terms.loss.backward()
    for memory in made.memories:
        half = len(memory.kv_proj.weight) // 2
        assert memory.q_proj.weight.grad.abs().max() > 0 and memory.kv_proj.weight.grad[:half].abs().max() > 0
        assert not memory.kv_proj.weight.grad[half:].any(), "values stay"
    assert {name.rsplit(".", 2)[-2] for name, p in made.model.named_parameters() if p.requires_grad} == {"q_proj", "kv_proj"}


def test_looking_at_the_right_row_is_learned():
    """On one pool, so that it can be learned by heart: far more of the attention is where it should be, and right first looks are counted."""
    made = task(messages=8, at_once=8)
    made.renew = 10**6
    optimizer = torch.optim.Adam([p for p in made.model.parameters() if p.requires_grad], 2e-2)
    looks, hits = [], []
    for _ in range(60):
        terms = made.step(STAGE, random.Random(0))
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        looks.append(terms.figures["looks"])
        hits.append(sum(map(sum, terms.hits.values())))
    assert looks[-1] < 0.6 * looks[0] and hits[-1] > hits[0], (looks[0], looks[-1], hits[0], hits[-1])


def test_a_pool_is_a_function_of_the_seed_and_goes_on_after_a_restart():
    first, second = task(3), task(3)
    rng = random.Random(1)
    for _ in range(2):
        first.step(STAGE, rng)
    second.restore(first.state())
    state = rng.getstate()
    a = first.step(STAGE, rng)
    rng.setstate(state)
    assert torch.equal(second.step(STAGE, rng).loss, a.loss)


def test_rows_of_what_was_read_cannot_be_kept():
    model = training_kit.model(vocab=259, layers=4, memory_layers=(1, 2), chunk=64)
    with pytest.raises(ValueError, match=r"memory.content must be 'token'"):
        FindTask(model, training_kit.people(), 0)


def test_states_of_a_sequence_do_not_depend_on_its_neighbours():
    made = task()
    head, _ = prefixed.window(made.model, torch.tensor(made.threads.head), [None, None], made.tables, made.last + 1)
    sequences = [[5, 6, 7], [9, 8], [1, 2, 3, 4, 5, 6]]
    with torch.no_grad():
        together = made._states(sequences, head)
        for i, ids in enumerate(sequences):
            for a, b in zip(together[i], made._states([ids], head)[0], strict=True):
                assert a.shape[0] == len(ids) and torch.allclose(a, b, atol=1e-5)
