"""What answers cost: of the right tokens, at the right places, whatever stands beside them."""

import random

import torch
import torch.nn.functional as F
import training_kit

from lm2.models.training import asking, passes
from lm2.models.training.talks import IGNORED, Asked


def question(ids, answer_from, value_at=-1, ordinary=False):
    n = len(ids)
    targets = [ids[i + 1] if answer_from <= i + 1 < n else IGNORED for i in range(n)]
    weights = [0.0 if t < 0 else 3.0 if i == value_at else 1.0 for i, t in enumerate(targets)]
    return Asked(ids, targets, weights, value_at, ordinary)


def asked(seed=0):
    rng = random.Random(seed)

    def some(n):
        return [rng.randrange(61) for _ in range(n)]

    return [[question(some(7), 4, 4), question(some(5), 2, 2), question(some(6), 3, ordinary=True)], [question(some(9), 1, ordinary=True)]]


def setting(model, heard=True):
    sheet = asking.laid_out(asked(), model.device)
    bank = torch.randn(model.config.bank_shape(2), generator=torch.Generator().manual_seed(2)).double()
    reads = passes.keys_values(model, list(bank)) if heard else [None, None]
    below = passes.below(model, sheet.ids, sheet.rows, 0)
    return sheet, bank, below, passes.answer_rows(model, below, reads, sheet.rows)


def test_the_loss_is_each_questions_own():
    model = training_kit.model(chunk=16).double()
    sheet, bank, _, h = setting(model)
    loss, hits = asking.answers(model, h, sheet)
    total, weight = 0.0, 0.0
    for q in asked()[0][:2]:
        logits, _ = model(torch.tensor([q.ids]), bank[:, :1], 0)
        targets = torch.tensor(q.targets)
        losses = F.cross_entropy(logits[0].float(), targets, reduction="none", ignore_index=IGNORED)
        total, weight = total + float((losses.detach() * torch.tensor(q.weights)).sum()), weight + sum(q.weights)
    assert abs(float(loss.detach()) - total / weight) < 1e-5
    assert [len(row) for row in hits] == [3, 1] and hits[0][2] and hits[1][0], "what is no question for a fact is never missed"


def test_a_hit_is_the_value_said():
    model = training_kit.model(chunk=16).double()
    sheet, _, _, h = setting(model)
    said = model.lm_head(h).argmax(-1)
    first = sheet.spans[0][0]
    sheet.targets[0, first.begin + 4] = said[0, first.begin + 4]
    assert asking.answers(model, h, sheet)[1][0][0]
    sheet.targets[0, first.begin + 4] = (said[0, first.begin + 4] + 1) % 61
    assert not asking.answers(model, h, sheet)[1][0][0]


def test_distance_to_the_backbone():
    model = training_kit.model(chunk=16).double()
    sheet, bank, below, h = setting(model)
    kl = float(asking.distance(model, below, h, sheet, 0, random.Random(0)).detach())
    total, places = 0.0, 0
    for row, q in ((0, asked()[0][2]), (1, asked()[1][0])):
        chosen = torch.tensor(q.targets) >= 0
        with_it, without = (model(torch.tensor([q.ids]), b[:, row : row + 1], 0)[0][0, chosen] for b in (bank, torch.zeros_like(bank)))
        teacher, own = F.log_softmax(without.float(), -1), F.log_softmax(with_it.float(), -1)
        total, places = total + float((teacher.exp() * (teacher - own)).sum().detach()), places + int(chosen.sum())
    assert abs(kl - total / places) < 1e-6 and kl > 1e-3
    sheet, _, below, h = setting(model, heard=False)
    assert float(asking.distance(model, below, h, sheet, 0, random.Random(0)).detach()) == 0.0
