"""An oracle for windows and folds: a whole window layer by layer, without caches, every token reading the bank of the last fold before it."""

import itertools
from dataclasses import dataclass, field

import torch


@dataclass
class Script:
    """What happens in one window. ids (b, s); folds: lengths at which the window is folded, ascending; carried: first tokens that are not written."""

    ids: torch.Tensor
    folds: tuple[int, ...] = ()
    carried: int = 0

    def segments(self):
        """(begin, end) of the tokens between two folds; the carried ones and those up to the first fold read the same bank."""
        marks = [0, *(f for f in self.folds if f > self.carried), self.ids.shape[1]]
        return [(a, b) for a, b in itertools.pairwise(marks) if b > a]


@dataclass
class Result:
    """logits (b, s, v); banks after each fold, the last one as if the window were committed; written: tokens in it."""

    logits: torch.Tensor
    banks: list[torch.Tensor] = field(default_factory=list)
    written: int = 0


def whole(model, bank, written, script):
    """The window by its definition: gated cells of models/memory.py on slices, self-attention over everything."""
    ids, s = script.ids, script.ids.shape[1]
    cos, sin = model.tables(s)
    x = model.embed_tokens(ids)  # (b, s, d)
    n, count = bank.shape[2], max(0, s - script.carried)
    versions, topics = [[] for _ in script.segments()], int(bool(model.config.memory.topics))
    values, looks = {}, [None] * len(script.segments())
    for i, block in enumerate(model.blocks):

        def cache(k, v, i=i):
            values[i] = v.transpose(1, 2).flatten(2)  # (b, s, k e)
            return k, v

        a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, cache)  # (b, s, d)
        if getattr(block.memory, "topics", None) is not None:
            features = torch.cat([values[k] for k in model.config.memory.topics], -1)  # (b, s, f)
            looks = topic_looks(model, block.memory, x, features, bank[-1].clone(), written, script, versions)
        if block.memory is not None:
            now, adds = bank[model.bank_of[i]].clone(), []
            for number, (begin, end) in enumerate(script.segments()):
                at = [(written + p - script.carried) % n for p in range(begin, end)]
                kv = valued(block.memory, now, bank[-1] if number == 0 else versions[number - 1][0])
                gain = model.topics.gain[model.bank_of[i]] if looks[number] is not None else 1.0
                add, rows = block.memory(x[:, begin:end], kv, now[:, at], None if looks[number] is None else gain * looks[number])
                adds.append(add)
                now = now.clone()
                for p, place in zip(range(begin, end), at, strict=True):
                    if p >= script.carried:
                        now[:, place] = rows[:, p - begin]
                versions[number].append(now)
            a = a + torch.cat(adds, dim=1)
        x = block.finish(x, a)
    return Result(model.lm_head(model.norm(x)), [torch.stack([*v[topics:], *v[:topics]]) for v in versions if v], written + count)


def valued(memory, now, told):
    """K and V of a memory's bank (b, n, d), and where values are made of the topics' bank too, what that adds, row by row."""
    if memory.v_topic_proj is None:
        return memory.keys_values(now, now.dtype)
    k, v = memory.keys_values(now, now.dtype, told=torch.zeros_like(told))
    for i in range(told.shape[1]):
        word = told[:, i] * memory.topic_norm.weight / (told[:, i].square().mean(-1, keepdim=True) + memory.topic_norm.eps).sqrt()  # (b, d)
        v[:, :, i] += (word @ memory.v_topic_proj.weight.T).view(len(told), memory.heads, memory.width)
    return k, v


def topic_looks(model, memory, x, features, now, written, script, versions):
    """By its definition, one row and one token after another: what topics add in each segment (b, t, n); their bank after it goes to `versions`."""
    m, n, d, topics = model.config.memory, now.shape[1], now.shape[2], memory.topics
    gate = torch.sigmoid(memory.norm(x) @ memory.token_proj.weight[:d].T + memory.input_bias)  # (b, s, d)
    out = []
    for number, (begin, end) in enumerate(script.segments()):
        near = torch.stack([sum(now[:, (i + o) % n] for o in range(-m.topic_around, m.topic_around + 1)) / (2 * m.topic_around + 1) for i in range(n)], 1)
        asked = []
        for p in range(begin, end):
            last = features[:, max(0, p + 1 - m.topic_back) : p + 1]
            asked.append(topics.query(last.sum(1) / last.shape[1]))
        out.append(torch.stack(asked, 1) @ near.transpose(1, 2) / d**0.5)  # (b, t, n)
        now = now.clone()
        for p in range(max(begin, script.carried), end):
            place = (written + p - script.carried) % n
            now[:, place] = gate[:, p].sum(-1, keepdim=True) / d * topics.write(features[:, p]) + torch.sigmoid(topics.keep) * now[:, place]
        versions[number].append(now)
    return out


def run(model, bank, written, script, window, split=None):
    """The same through the model's own windows; tokens fed in pieces of `split` (None: as large as allowed) that stop at folds and at the carried ones."""
    state, tables, chunk = model.start(bank, written, window, script.carried), model.tables(window), model.config.memory.chunk
    out, banks, s = [], [], script.ids.shape[1]
    stops = sorted({*script.folds, s})
    at = 0
    for stop in stops:
        while at < stop:
            size = min(stop - at, split or s, max(1, state.folded + chunk - at))
            logits, state = model.extend(script.ids[:, at : at + size], state, tables, all_logits=True)
            out.append(logits)
            at += size
        if stop in script.folds:
            before = state
            state = model.fold(state)
            if state is not before:
                banks.append(state.bank)
    last, count = model.commit(state)
    if count != state.written:
        banks.append(last)
    return Result(torch.cat(out, dim=1), banks, count), state


SCRIPTS = {
    "one chunk": ((), 0, 16),
    "a fold a turn": ((5, 6, 19, 33), 0, 40),
    "full chunks": ((16, 32), 0, 48),
    "carried, nothing new": ((), 24, 24),
    "carried beyond a chunk": ((27, 30, 44), 20, 47),
    "carried, folded late": ((36,), 20, 37),
    "fold inside what is carried": ((7, 25), 10, 28),
}
"""Folds, carried tokens and length of a window of 48 positions, in models that fold after 16 tokens at the latest."""


def on_backend(backend, state, script, window, split=None):
    """The same through a backend's contract: logits (b, s, v) and the memory after each fold and after a commit, on the host."""
    import numpy as np

    at, out, banks, chunk = backend.start(script.ids.shape[0], state, window, script.carried), [], [], backend.config.memory.chunk
    ids = script.ids.numpy()
    for stop in sorted({*script.folds, ids.shape[1]}):
        while at.length < stop:
            if at.length >= script.carried and at.length - at.folded == chunk:
                at = backend.fold(at)
            room = script.carried - at.length if at.length < script.carried else at.folded + chunk - at.length
            size = min(stop - at.length, room, split or stop)
            logits, at = backend.extend(ids[:, at.length : at.length + size], at, all_logits=True)
            out.append(logits)
        if stop in script.folds and stop > at.folded:
            at = backend.fold(at)
            banks.append(backend.to_host(backend.memory(at)))
    last = backend.commit(at)
    return np.concatenate(out, axis=1), [*banks, backend.to_host(last)], last.written, at
