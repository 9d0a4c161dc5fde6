"""What is trained is what a session does: the same rows, the same answers; and a step's terms move what they are for."""

import random

import pytest
import torch
import training_kit

from lm2.models.training import banks, pools, prefixed
from lm2.models.training.plan import Stage
from lm2.models.training.threads import Fact, Question

STAGE = Stage(1.0, 1, 1, 1)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short conversations: a byte is a token here."""
    for name, value in {"LENGTHS": (60, 120), "OTHER_LENGTHS": (60, 120), "PASSAGE": 40, "TAIL": 80}.items():
        monkeypatch.setattr(pools, name, value)


def made(**fields):
    model = training_kit.model(vocab=259, layers=4, memory_layers=(1, 2), chunk=64, rows=2, **fields).eval().double()
    return model, prefixed.memories(model)


def some(count, seed):
    return torch.randint(0, 259, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("content", ["both", "token", "topics"])
def test_rows_are_those_of_a_fold(content):
    """A thread kept once and written from what its memories met: the bank after a fold, over rows that were there."""
    model, memories = made(**({"content": content} if content != "topics" else {"content": "token", "topics": (0,)}))
    count = model.config.memory.banks
    bank = torch.randn(count, 1, 128, 32, generator=torch.Generator().manual_seed(1)).double()
    ids = some(50, 2)
    thread = training_kit.people().thread(random.Random(0), 10)
    thread.ids, thread.head = ids.tolist(), 0
    with torch.no_grad():
        reads = banks.reads(memories, list(bank[:, 0]))
        kept = banks.keep(model, thread, reads, model.tables(64))
        written = banks.write(memories, kept)
        rows = banks.joined([written], [b[0, :50] for b in bank], [])
        _, after = model(ids[None], bank)
    for j in range(count):
        assert torch.allclose(rows[j], after[j, 0, :50], atol=1e-9), j
    wrong = banks.joined([written], None, [])
    assert not torch.allclose(wrong[0], after[0, 0, :50], atol=1e-3), "rows that were there count"


def test_later_talk_is_written_over():
    a, b = (banks.Written([torch.full((4, 32), x)], [torch.full((4, 32), f)], []) for x, f in ((1.0, 0.5), (0.25, 0.5)))
    assert torch.equal(banks.joined([a], None, [b, b])[0], torch.full((4, 32), 0.25 + 0.5 * (0.25 + 0.5 * 1.0)))


@pytest.mark.parametrize("fields", [{}, {"topics": (0,)}, {"topics": (0,), "values": "topics"}, {"opens": "both"}], ids=["plain", "topics", "values", "opens"])
def test_questions_behind_a_window_are_a_sessions(fields):
    """Several questions of unequal length after one window: each has the logits of the window read on with it alone."""
    model, memories = made(**fields)
    bank = torch.randn(model.config.memory.banks, 1, 128, 32, generator=torch.Generator().manual_seed(1)).double()
    window, questions = some(21, 3), [some(9, 4), some(14, 5)]
    with torch.no_grad():
        reads = banks.reads(memories, list(bank[:, 0]))
        before, _ = prefixed.window(model, window, reads, model.tables(64))
        x = torch.nn.utils.rnn.pad_sequence([model.embed_tokens(q) for q in questions], batch_first=True)
        met = []
        low = prefixed.layers(model, x, model.tables(64), reads, 0, 1, before, met=met)
        above = [(before[0][0][:, :, :0], before[0][1][:, :, :0]), *before[1:]]  # as pools keep it
        h = prefixed.layers(model, low, model.tables(64), reads, 1, 4, above, lately=met[1] if met else None)
        for i, q in enumerate(questions):
            _, state = model.extend(window[None], model.start(bank, window=64), model.tables(64))
            logits, _ = model.extend(q[None], state, model.tables(64))
            assert torch.allclose(model.lm_head(model.norm(h[i, len(q) - 1])), logits[0, -1], atol=1e-9)
        none, _ = prefixed.window(model, window[:0], reads, model.tables(64))
        first = prefixed.layers(model, x, model.tables(64), reads, 0, 4, none)
        logits, _ = model.extend(questions[0][None], model.start(bank, window=64), model.tables(64))
        assert torch.allclose(model.lm_head(model.norm(first[0, 8])), logits[0, -1], atol=1e-9), "a window of nothing"
        alone = prefixed.layers(model, x, model.tables(64), prefixed.unread(model), 0, 4, before)
    assert not torch.allclose(alone, h, atol=1e-3), "the bank is read"


def test_never_written_rows_take_their_share():
    _, memories = made()
    rows = torch.randn(5, 32).double()
    few, more = (banks.reads(memories, [rows, rows], empty) for empty in (0, 3))
    assert few.memories[0][0].shape[2] == 5 and more.memories[0][0].shape[2] == 8 and not more.memories[0][0][:, :, 5:].any()


def test_a_step_is_a_function_of_its_seed_and_trains_the_memory_alone():
    first, second = (training_kit.natural_task(1, (2, 1, 2)) for _ in range(2))
    a, b = (task.step(STAGE, random.Random(2)) for task in (first, second))
    assert torch.equal(a.loss, b.loss) and a.figures == b.figures and a.tokens == b.tokens
    assert not torch.equal(a.loss, training_kit.natural_task(2, (2, 1, 2)).step(STAGE, random.Random(2)).loss)
    (a.loss + a.quiet).backward()
    moved = {name for name, p in first.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved and all(".memory." in name for name in moved)
    for part in ("q_proj", "kv_proj", "o_proj", "token_proj", "read_proj"):
        assert any(part in name for name in moved), part


@pytest.mark.parametrize("half", [False, True])
def test_recomputing_changes_no_number_and_keeps_less(half):
    """One step with and without the activations of MLPs: the same loss and gradients, and of activations as wide as an MLP none is kept for differentiating."""
    losses, gradients, kept = [], [], []
    for recompute in (False, True):
        task = training_kit.natural_task(sizes=(2, 1, 2))
        task.recompute = recompute
        inner, wide = task.model.config.intermediate_size, list[int]()

        def note(x, inner=inner, wide=wide):
            wide += [x.nbytes] if x.dim() == 3 and x.shape[-1] in (inner, 2 * inner) else []
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = task.step(STAGE, random.Random(1))
        (terms.loss + terms.quiet).backward()
        losses.append(terms.loss.detach())
        gradients.append([p.grad for p in task.model.parameters() if p.requires_grad and p.grad is not None])
        kept.append(sum(wide))
    assert torch.equal(*losses) and len(gradients[0]) > 10
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert kept[0] > 100_000 and kept[1] == 0, kept


def test_a_silent_memory_costs_no_divergence_and_a_heard_one_does():
    task = training_kit.natural_task(sizes=(1, 1, 2))
    assert task.step(STAGE, random.Random(0)).figures["kl"] > 1e-6
    silent = training_kit.natural_task(sizes=(1, 1, 2))
    for memory in silent.memories:
        torch.nn.init.zeros_(memory.o_proj.weight)
    assert abs(silent.step(STAGE, random.Random(0)).figures["kl"]) < 1e-6


def test_a_look_at_the_values_row_costs_least():
    """Of a value of two tokens, each token's own row; then the message; then anything else."""
    task = training_kit.natural_task(sizes=(0, 1, 0))
    fact = Fact(4, 10, (6, 8), "ab", ("?",), "ab", ("k",))
    asked = Question([0, 1, 2, 3], [-100, 7, 8, -100], [1, 2], fact)
    keys = torch.randn(1, 4, 20, 8, generator=torch.Generator().manual_seed(0))
    memory = task.memories[1]

    def cost(*rows):
        """Of looking at these rows, one for each of the value's tokens."""
        wanted = torch.stack([keys[0, :, row].reshape(-1) for row in rows]).detach()  # (p, h e)
        query = torch.linalg.lstsq(memory.q_proj.weight.detach(), 20 * wanted.T).solution.T  # (p, d)
        x = torch.zeros(1, 4, 32)
        x[0, 1:3] = query / query.square().mean(-1, keepdim=True).sqrt()
        with torch.no_grad():
            memory.norm.weight.fill_(float(query.square().mean().sqrt()))
            return task._looks([asked], [prefixed.Seen(x, x)] * 2, prefixed.Reads([(keys, keys)] * 2), 2)[2:].mean().item()

    own, message, other = cost(8, 9), cost(6, 11), cost(15, 2)
    assert own < message < other and own < 0.5, (own, message, other)


def test_the_probe_opens_gates_on_what_is_told():
    task = training_kit.natural_task(sizes=(0, 1, 0))
    probes = task.probe(threads=4)
    assert len(probes) == 2 and all(0 <= p.caught <= 1 for p in probes)
    assert torch.equal(task.memories[0].input_bias, probes[0].bias.expand(32))


def test_what_no_memory_helps_with_is_said_beside_what_was_told_too(monkeypatch):
    """In a window that holds the end of a thread with facts, which the bank may hold as well; the control: no thread with facts, no such window."""
    task = training_kit.natural_task(sizes=(3, 1, 12))
    pool = task.pools.draw(0)
    beside = [g for g in pool.nothing if g.beside is not None]
    assert beside and all(g.thread is None and g.beside < pool.told for g in beside) and len(beside) < len(pool.nothing)
    assert not any(g.beside is not None for g in training_kit.natural_task(sizes=(0, 1, 12)).pools.draw(0).nothing)
    for group in beside:
        length = group.before[-1][0].shape[2] - len(task.threads.head)
        told = pool.kept[group.beside].thread
        ids = torch.tensor([*task.threads.head, *told.ids[told.head :][-length:]])
        with torch.no_grad():
            first = prefixed.window(task.model, ids, prefixed.unread(task.model), task.tables, 1)[0]
            asked = task.model.embed_tokens(torch.tensor([group.questions[0].ids]))  # (1, t, d)
            x = prefixed.layers(task.model, asked, task.tables, prefixed.unread(task.model), 0, 1, first)
        assert torch.allclose(x[0], group.states[0], atol=1e-5)
    drawn = []
    monkeypatch.setattr(prefixed, "layers", lambda model, x, *rest, **more: drawn.append(x) or x)
    rng = random.Random(0)
    reads = prefixed.Reads([None] * 2)
    for _ in range(60):
        task._nothing(rng, pool, [beside[0].beside], reads)
    own = [g.states[0] for g in beside if g.beside == beside[0].beside]
    inside = sum(any(len(s) <= x.shape[1] and torch.equal(x[0, : len(s)], s) for s in own) for x in drawn)
    assert 21 < inside < 60


def test_messages_that_tell_something_are_answered_without_a_memory_too():
    from lm2.models.training import answers

    told = answers.tellings(3, 30)
    assert told == answers.tellings(3, 30) != answers.tellings(4, 30) and len(set(told)) == 30
    assert sum(t.rstrip().endswith("?") for t in told) < 3
