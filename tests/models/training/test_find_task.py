"""Finding alone: rows are what a fold would write, looking at the right one is learned, and pools are the same after a restart."""

import random

import pytest
import torch
import training_kit

from lm2.models.training import banks, find_task, prefixed
from lm2.models.training.find_task import FindTask
from lm2.models.training.plan import Stage

STAGE = Stage(1.0, 1, 1, 1)


def task(seed=0, keys="pair", topics=(), **sizes):
    model = training_kit.model(vocab=259, layers=4, memory_layers=(1, 2), chunk=512, rows=4, content="token", keys=keys, topics=topics)
    return FindTask(model, training_kit.people(), seed, **({"messages": 12, "at_once": 8} | sizes))


@pytest.mark.parametrize("keys", ["row", "pair"])
def test_rows_and_keys_are_those_of_a_bank(keys):
    """The negative control: keys of the same rows in another order are others only where a key is made of two rows."""
    made = task(keys=keys, messages=3)
    pool = made.drawn.draw(0)
    ids, _, _ = made.drawn.threads.sequence(random.Random("0 find 0"))
    thread = made.drawn.threads.thread(random.Random(0), 1)
    thread.ids, thread.head = [*made.drawn.threads.head, *ids], len(made.drawn.threads.head)
    with torch.no_grad():
        kept = banks.keep(made.model, thread, prefixed.unread(made.model), made.drawn.tables)
        for j, memory in enumerate(made.memories):
            bank = banks.write(made.memories, kept).new[j]
            own = made._rows(memory, memory.norm(pool.states[: len(ids), j].float()))
            assert torch.allclose(own, memory.bank_norm(bank), atol=2e-2), "states are kept in float16"
            k, _ = memory.keys_values(bank[None], torch.float32)
            again, _ = memory.keys_values(bank[None].flip(1), torch.float32)
            assert torch.allclose(k, again.flip(2), atol=1e-5) == (keys == "row")


def test_finding_alone_is_trained():
    made = task(topics=(0,))
    terms = made.step(STAGE, random.Random(0))
    terms.loss.backward()
    for memory in made.memories:
        half, d = len(memory.kv_proj.weight) // 2, len(memory.token_proj.weight) // 2
        assert memory.q_proj.weight.grad.abs().max() > 0 and memory.kv_proj.weight.grad[:half].abs().max() > 0
        assert memory.k_before_proj.weight.grad.abs().max() > 0 and memory.token_proj.weight.grad[d:].abs().max() > 0
        assert not memory.kv_proj.weight.grad[half:].any(), "values stay"
        assert not memory.token_proj.weight.grad[:d].any(), "gates stay"
    for part in (made.model.topics.write.weight, made.model.topics.query.weight, made.model.topics.gain):
        assert part.grad.abs().max() > 0
    trained = {name.split(".memory.")[1] for name, p in made.model.named_parameters() if p.requires_grad}
    own = {"q_proj.weight", "kv_proj.weight", "k_before_proj.weight", "token_proj.weight"}
    assert trained == own | {"topics.write.weight", "topics.write.bias", "topics.query.weight", "topics.query.bias", "topics.gain"}


def test_a_new_memory_begins_by_likeness():
    """A state finds the row behind one of its like; drawn maps find it by chance."""
    found = []
    for begun in (False, True):
        made = task(messages=6)
        for memory in made.memories:
            d = memory.token_proj.weight.shape[1]
            memory.token_proj.weight.data[d:] = 0.5 * torch.eye(d)  # as a warm start has it
        if begun:
            made.begin()
        with torch.no_grad():
            states = made._have(0).states[:200].float()
            for j, memory in enumerate(made.memories):
                u = memory.norm(states[:, j])
                k, _ = memory.keys_values(made._rows(memory, u)[None], torch.float32)
                looked = prefixed.attention(memory, states[:, j], k).mean(1).argmax(-1)  # (p,)
                found.append(float((looked[:-1] == torch.arange(1, len(u))).float().mean()))
    assert max(found[:2]) < 0.1 and min(found[2:]) > 0.3, found


def test_looking_at_the_right_row_is_learned(monkeypatch):
    """On one pool, so that it can be learned by heart: far more of the attention is where it should be, and right first looks are counted."""
    monkeypatch.setattr(find_task, "FIRST", 1)
    monkeypatch.setattr(find_task, "DROPPED", 0.0)
    made = task(messages=8, at_once=30)
    made.renew = 10**6
    made.drawn.messages = 8
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
    state, dropped = rng.getstate(), torch.get_rng_state()
    a = first.step(STAGE, rng)
    rng.setstate(state)
    torch.set_rng_state(dropped)
    assert torch.equal(second.step(STAGE, rng).loss, a.loss)


def test_topics_are_those_of_a_window():
    """Features and means that a pool keeps, in a bank as it is trained on: the logits that a window behind the same bank adds."""
    made = task(topics=(0,), messages=3)
    pool, model = made.drawn.draw(0), made.model
    with torch.no_grad():
        rows = made._topic_rows(pool.states[:, 0].float(), pool.features.float())  # (n, d)
        near = model.topics.around(rows[None])  # (1, n, d)
        trained = model.topics.looks(pool.lately[0].float()[None], near)[0]  # (p, n)
        bank = torch.zeros(3, 1, 2048, 32)
        bank[2, 0, : len(pool.features)] = rows
        state = model.start(bank, len(pool.features), window=512)
        q = pool.questions[0]
        ids = torch.tensor([[*made.drawn.threads.head, *q.ids]])
        model.extend(ids, state, model.tables(512))
        looked = model.topic_looks(model.topics, ids.shape[1], state, 0)[0]  # (t, n)
        places = [len(made.drawn.threads.head) + p for p in q.value]
        inner = slice(10, len(pool.features) - 10)  # the ring goes on into empty rows there
        assert torch.allclose(trained[:, inner], looked[places][:, inner], atol=2e-2) and looked.abs().max() > 0.1
        told = [*made.drawn.threads.head, *made.drawn.threads.sequence(random.Random("0 find 0"))[0]]
        window = model.extend(torch.tensor([told]), model.start(torch.zeros(3, 1, 2048, 32), 0, window=512), model.tables(512))[1]
        written = model.commit(window)[0][2, 0, len(made.drawn.threads.head) : len(told)]  # (n, d)
        assert len(written) == pool.begins[1] and torch.allclose(written, rows[: len(written)], atol=2e-2) and rows.abs().max() > 0.1
        assert not torch.allclose(written, model.topics.write(pool.features[: len(written)].float()), atol=2e-2)  # a gate left out is seen


def test_new_topics_tell_messages_apart():
    """Begun from pools, not trained: what is talked of in a question is nearest to rows of its own message far more often than by chance."""
    found = []
    for begun in (False, True):
        made, right = task(topics=(0,), messages=30), []
        if begun:
            made.begin_topics()
        for turn in range(4):  # one pool's seventy questions say too little: 0 to 9% by chance, 3 to 20% begun
            pool, topics = made._have(turn), made.model.topics
            with torch.no_grad():
                near = topics.around(topics.write(pool.features.float())[None])
                looked = topics.looks(torch.stack([x[0] for x in pool.lately]).float()[None], near)[0].argmax(-1)  # (p,)
            asked = zip(looked.tolist(), pool.questions, pool.owner, strict=True)
            right += [pool.begins[o] + q.fact.begin - 10 <= r < pool.begins[o] + q.fact.end + 10 for r, q, o in asked]
        found.append(sum(right) / len(right))
    assert found[1] > 2 * found[0] and found[1] > 0.08, found  # 0.034, 0.129


def test_rows_of_what_was_read_cannot_be_kept():
    model = training_kit.model(vocab=259, layers=4, memory_layers=(1, 2), chunk=64)
    with pytest.raises(ValueError, match=r"memory.content must be 'token'"):
        FindTask(model, training_kit.people(), 0)


def test_states_of_a_sequence_do_not_depend_on_its_neighbours():
    made = task(topics=(0,))
    head, _ = prefixed.window(made.model, torch.tensor(made.drawn.threads.head), prefixed.unread(made.model), made.drawn.tables, 3)
    sequences = [[5, 6, 7], [9, 8], [1, 2, 3, 4, 5, 6]]
    with torch.no_grad():
        together = made.drawn.states(sequences, head)
        for i, ids in enumerate(sequences):
            alone = made.drawn.states([ids], head)[0]
            assert together[i].states.shape == (len(ids), 2, 32) and together[i].lately.shape == (len(ids), 16)
            assert all(torch.allclose(a.float(), b.float(), atol=5e-3) for a, b in zip(together[i], alone, strict=True))


def test_states_are_kept_and_made_again_where_the_file_is_not_theirs(tmp_path):
    first = task(messages=4, kept=tmp_path, key="a")
    pool = first.drawn.draw(0)
    (file,) = tmp_path.iterdir()
    assert file.name == "pool-0-0.pt"
    record = torch.load(file, weights_only=True)
    torch.save(record | {"states": record["states"] + 1}, file)
    assert torch.equal(task(messages=4, kept=tmp_path, key="a").drawn.draw(0).states, pool.states + 1), "the file is what is used"
    assert torch.equal(task(messages=4, kept=tmp_path, key="b").drawn.draw(0).states, pool.states), "of another backbone"
    file.write_bytes(b"damaged")
    assert torch.equal(task(messages=4, kept=tmp_path, key="a").drawn.draw(0).states, pool.states)
