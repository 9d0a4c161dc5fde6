"""The finder: what it computes against the same written token by token, and against the maps that it is trained as."""

import math
from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny

SIZES = ((1, [1]), (3, [4, 1, 2]), (7, [9, 5, 1, 1, 12]), (1, [1, 1]))


def drawn(message, lengths, vocab=40, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, vocab, message).tolist(), [rng.integers(0, vocab, n).tolist() for n in lengths]


def by_hand(finder, message, passages):
    """Scores and nothing's in plain loops over floats."""

    def vectors(table, step, ids):
        own = [[int(x) * float(step[i]) for x in table[i]] for i in ids]
        out = []
        for n in range(len(ids)):
            vector = []
            for k in range(len(own[0])):
                before = own[n - 1][k] if n > 0 else 0.0
                after = own[n + 1][k] if n + 1 < len(ids) else 0.0
                vector.append(before * float(finder.mix[0, k]) + own[n][k] * float(finder.mix[1, k]) + after * float(finder.mix[2, k]))
            size = math.sqrt(sum(x * x for x in vector))
            out.append([x / size for x in vector])
        return out

    asked = vectors(finder.asking, finder.asking_step, message)
    weights = [float(finder.weight_asking[i]) for i in message]
    scores = []
    for passage in passages:
        told = vectors(finder.telling, finder.telling_step, passage)
        total = 0.0
        for vector, weight in zip(asked, weights, strict=True):
            total += weight * max(sum(a * b for a, b in zip(vector, t, strict=True)) + float(finder.weight_telling[i]) for t, i in zip(told, passage, strict=True))
        prior = sum(float(finder.prior[i]) for i in passage) / len(passage)
        scores.append((total / sum(weights) + prior) * finder.sharpness)
    return scores, sum(float(finder.nothing[i]) for i in message) / len(message) * finder.sharpness


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("message", "lengths"), SIZES)
def test_scores_are_those_of_loops(message, lengths, seed):
    finder = recall_kit.finder(seed=seed)
    ids, passages = drawn(message, lengths, seed=seed)
    scores, nothing = finder.scores(ids, passages)
    want, want_nothing = by_hand(finder, ids, passages)
    assert scores.dtype == np.float32 and scores.shape == (len(lengths),)
    np.testing.assert_allclose(scores, want, rtol=2e-5, atol=2e-5)
    assert nothing == pytest.approx(want_nothing, rel=1e-5)


WRONG = {
    "the one before and the one after exchanged": lambda f: f._replace(mix=f.mix[::-1].copy()),
    "no prior": lambda f: f._replace(prior=np.zeros_like(f.prior)),
    "asking and telling exchanged": lambda f: f._replace(asking=f.telling, telling=f.asking),
    "steps exchanged": lambda f: f._replace(asking_step=f.telling_step, telling_step=f.asking_step),
    "all tokens weigh the same": lambda f: f._replace(weight_asking=np.ones_like(f.weight_asking)),
    "telling weights left out": lambda f: f._replace(weight_telling=np.zeros_like(f.weight_telling)),
    "not sharpened": lambda f: f._replace(sharpness=1.0),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_part_of_a_finder_counts(wrong):
    finder = recall_kit.finder()
    ids, passages = drawn(7, [9, 5, 12])
    scores, _ = finder.scores(ids, passages)
    other, _ = WRONG[wrong](finder).scores(ids, passages)
    assert np.abs(other - scores).max() > 1e-3


def test_passages_are_scored_each_for_itself():
    """Alone, among others, in any order, a passage scores the same; glued to its neighbour it would not."""
    finder = recall_kit.finder()
    ids, passages = drawn(5, [3, 1, 6, 2])
    scores, nothing = finder.scores(ids, passages)
    for i, passage in enumerate(passages):
        alone, same = finder.scores(ids, [passage])
        assert alone[0] == pytest.approx(scores[i], rel=1e-5) and same == nothing
    turned, _ = finder.scores(ids, passages[::-1])
    np.testing.assert_allclose(turned[::-1], scores, rtol=1e-5)
    leaking, vectors = np.zeros(1, np.int64), type(finder)._vectors
    told = np.concatenate(passages)
    begins = np.array([0, 3, 4, 10])
    apart = vectors(finder, finder.telling, finder.telling_step, told, begins)
    together = vectors(finder, finder.telling, finder.telling_step, told, leaking)
    edges = [2, 3, 4, 9, 10]
    assert all(np.abs(apart[n] - together[n]).max() > 1e-3 for n in edges), "what a leak would change"
    inside = [n for n in range(12) if n not in edges]
    np.testing.assert_allclose(apart[inside], together[inside], rtol=1e-6)


def test_a_message_does_not_depend_on_what_it_is_asked_among():
    finder = recall_kit.finder()
    (one, passages), (other, _) = drawn(5, [3, 4]), drawn(4, [1], seed=9)
    first = finder.scores(one, passages)
    finder.scores(other, passages)
    again = finder.scores(one, passages)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]


@pytest.mark.parametrize(("message", "passages"), [([], [[1]]), ([1], [[]]), ([1], [[1], [], [2]])])
def test_texts_without_tokens_are_refused(message, passages):
    with pytest.raises(ValueError, match="a message and a passage need at least one token"):
        recall_kit.finder().scores(message, passages)


# the maps it is trained as


@pytest.fixture(scope="module")
def maps():
    """Maps on random embeddings, every parameter away from where it began."""
    import torch

    from lm2.models.training.seek_task import FinderMaps
    from lm2.models.weights import random_model

    model = random_model(replace(tiny.config(), vocab_size=200), 1)
    made = FinderMaps(model.embed_tokens.weight.float(), 0, width=12)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in made.named_parameters():
            spread = 0.1 * p.std() if name in ("asking", "telling") else 0.3
            p += spread * torch.randn(p.shape, generator=generator)
    return made


def test_a_finder_is_what_was_trained(maps):
    import torch

    finder = maps.finder()
    gaps, ranks = [], []
    for seed in range(8):
        _, passages = drawn(1, [3, 1, 8, 5, 2, 12], 200, seed)
        asking = [drawn(n, [1], 200, 100 + 10 * seed + n)[0] for n in (6, 1, 9)]
        with torch.no_grad():
            want = maps.scores(asking, passages).numpy()
        for row, message in zip(want, asking, strict=True):
            scores, nothing = finder.scores(message, passages)
            got = np.append(scores, nothing)
            gaps.append(np.abs(got - row).max())
            close = np.diff(np.sort(row)).min()
            ranks.append(np.array_equal(np.argsort(row), np.argsort(got)) or close < 2 * gaps[-1])
            alone, _ = finder.scores(message, passages[2:3])
            assert alone[0] == pytest.approx(scores[2], rel=1e-4)
    gate = 0.01 * finder.sharpness
    print(f"largest gap {max(gaps):.4f}, gate {gate:.4f}")
    assert max(gaps) < gate and all(ranks)
    for wrong in ("the one before and the one after exchanged", "no prior", "all tokens weigh the same", "asking and telling exchanged"):
        other = np.append(*WRONG[wrong](finder).scores(asking[2], passages))
        assert np.abs(other - want[2]).max() > 2 * gate, wrong


def test_maps_keep_texts_apart(maps):
    """As many at once as a step has: each message and passage as if it were alone."""
    import torch

    _, passages = drawn(1, [3, 1, 8], 200)
    asking = [drawn(n, [1], 200, n)[0] for n in (6, 1, 9)]
    with torch.no_grad():
        together = maps.scores(asking, passages)
        for a, message in enumerate(asking):
            for p, passage in enumerate(passages):
                alone = maps.scores([message], [passage])[0]
                torch.testing.assert_close(alone, together[a, [p, 3]], rtol=1e-4, atol=1e-4)
