"""What the backbone itself answers to ordinary questions, to those for what nobody told it, and to what it is told: greedy, with nothing in its memory.

Axes: b questions of one length, t tokens.
"""

import random
from collections.abc import Sequence

import torch

from ..lm2 import LM2
from ..tasks.natural import kinds
from ..tasks.ordinary import question

QUESTIONS, TELLINGS, TOKENS, AT_ONCE = 240, 160, 24, 24


def questions(seed: int, count: int = QUESTIONS) -> list[str]:
    """Different questions, a function of the seed."""
    rng = random.Random(f"{seed} ordinary")
    found: dict[str, None] = {}
    while len(found) < count:
        found[question(rng)] = None
    return list(found)


def tellings(seed: int, count: int = TELLINGS) -> list[str]:
    """Different messages that tell something, a function of the seed: none is a question for what was told before."""
    rng = random.Random(f"{seed} tellings")
    found: dict[str, None] = {}
    while len(found) < count:
        told = kinds.draw_all(rng, "train")
        if not told[0].earlier:
            found[told[0].text] = None
    return list(found)


@torch.no_grad()
def answer(model: LM2, prompts: Sequence[Sequence[int]], ends: Sequence[int], tokens: int = TOKENS) -> list[list[int]]:
    """Up to `tokens` greedy ids after each prompt, without the one that ends it. Prompts of one length are computed together."""
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    tables = model.tables()
    while order:
        group = [i for i in order[:AT_ONCE] if len(prompts[i]) == len(prompts[order[0]])]
        order = order[len(group) :]
        chunk = model.start(model.initial_bank(len(group)))
        ids = torch.tensor([list(prompts[i]) for i in group], device=model.device)  # (b, t)
        going = set(group)
        for _ in range(min(tokens, model.config.memory.chunk - ids.shape[1])):
            logits, chunk = model.extend(ids, chunk, tables)
            ids = logits[:, -1].argmax(-1, keepdim=True)  # (b, 1)
            for i, token in zip(group, ids[:, 0].tolist(), strict=True):
                if token in ends:
                    going.discard(i)
                if i in going:
                    out[i].append(token)
            if not going:
                break
    return out
