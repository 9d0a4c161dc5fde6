"""Windows and folds in MLX, and in PyTorch behind the same contract, against the oracle of tests/window_kit.py in float64."""

import mlx_kit
import numpy as np
import pytest
import tiny
import torch
from compare import nmse, relative_l2
from window_kit import SCRIPTS, Script, on_backend, whole

from lm2.models.errors import BackendError
from lm2.models.weights import random_model
from lm2.runtime.backend import MemoryState

pytest.importorskip("mlx.core")
W = 48
EVERY = tiny.CELLS | tiny.ALONE
GATED = [name for name in EVERY if name.startswith("gated")]
RELATIVE, BANK = 1e-5, 1e-10


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: mlx_kit.folder(tmp_path_factory.mktemp("m") / name, name) for name in GATED}


def given(name, carried):
    """A float64 model, a bank that was written three times over a pointer that is no multiple of a chunk, and the tokens in it."""
    model = random_model(EVERY[name], seed=3, dtype=torch.float64)
    model.load_state_dict({k: v.float().double() for k, v in model.state_dict().items()})
    bank, written = model.initial_bank(2), 0
    for c in range(3 if carried else 0):
        ids = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(30 + c))
        bank, written = model(ids, bank, written)[1], written + 16
    return model, bank, written + (5 if carried else 0)


def agree(got, want):
    logits, banks, written, _ = got
    figures = relative_l2(logits, want.logits.numpy()), nmse(banks[-1], want.banks[-1].numpy()) if want.banks else 0.0
    print(f"logits relative L2 {figures[0]:.2g} gate {RELATIVE:g}; bank NMSE {figures[1]:.2g} gate {BANK:g}")
    return figures[0] <= RELATIVE and figures[1] <= BANK and written == want.written


@torch.inference_mode()
@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("name", GATED)
def test_a_window_is_what_it_is_defined_to_be(folders, name, what):
    folds, carried, length = SCRIPTS[what]
    model, bank, written = given(name, carried)
    script = Script(torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(5)), folds, carried)
    want = whole(model, bank, written, script)
    for backend in (mlx_kit.mlx(folders[name]), mlx_kit.torch(folders[name])):
        for split in (None, 1):
            state = backend.from_host(bank.float().numpy(), written)
            assert agree(on_backend(backend, state, script, W, split), want)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["fold ignored", "pointer off by one", "carried tokens written twice"])
def test_a_wrong_window_is_noticed(folders, fault, monkeypatch):
    backend = mlx_kit.mlx(folders["gated-4T"])
    model, bank, written = given("gated-4T", 20)
    script = Script(torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(5)), (25, 33), 20)
    want, state, asked = whole(model, bank, written, script), backend.from_host(bank.float().numpy(), written), script
    if fault == "fold ignored":
        fold = backend.fold
        monkeypatch.setattr(backend, "fold", lambda w: fold(w)._replace(reads=w.reads))
    elif fault == "pointer off by one":
        first = backend.model.first_row
        monkeypatch.setattr(backend.model, "first_row", lambda w: first(w + 1))
    else:
        asked = Script(script.ids, (16, 25, 33), 0)
    assert not agree(on_backend(backend, state, asked, W), want)


def sides_as_they_were(backend):
    """A fold that makes anew what is near the rows it wrote, and not what is near those to either side."""
    import mlx.core as mx

    fold = backend.fold

    def wrong(window):
        after = fold(window)
        if after is window or window.around is None:
            return after
        written = [(window.written + i) % window.around.shape[1] for i in range(after.written - window.written)]
        sides = [row for row in range(window.around.shape[1]) if row not in written]
        around = np.array(after.around)
        around[:, sides] = np.array(window.around)[:, sides]
        return after._replace(around=mx.array(around))

    return wrong


def unheard(backend):
    """Topics that say nothing."""
    start, fold = backend.start, backend.fold
    return lambda *a: start(*a)._replace(around=None), lambda window: fold(window)._replace(around=None)


WRONG_GATES = {"rows whatever the gate": lambda told: 0 * told + 1, "the gate of the token before": lambda told: told[:, [0, *range(told.shape[1] - 1)]]}
VALUES = {"values of the row alone": lambda told: 0 * told, "values of the row after": lambda told: told[:, [*range(1, told.shape[1]), 0]]}
TOPIC_FAULTS = ["a fold leaves what is near the rows to either side", "topics are not heard", "what was talked of, one token late", *WRONG_GATES, *VALUES]


@torch.inference_mode()
@pytest.mark.parametrize("fault", [None, *TOPIC_FAULTS])
def test_wrong_topics_are_noticed(folders, fault, monkeypatch):
    backend = mlx_kit.mlx(folders["gated-topics"])
    model, bank, written = given("gated-topics", 20)
    script = Script(torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(5)), (25, 33), 20)
    want, state = whole(model, bank, written, script), backend.from_host(bank.float().numpy(), written)
    if fault == "a fold leaves what is near the rows to either side":
        monkeypatch.setattr(backend, "fold", sides_as_they_were(backend))
    elif fault == "topics are not heard":
        start, fold = unheard(backend)
        monkeypatch.setattr(backend, "start", start)
        monkeypatch.setattr(backend, "fold", fold)
    elif fault in WRONG_GATES:
        made = backend.model.topics.rows
        monkeypatch.setattr(backend.model.topics, "rows", lambda features, told, old: made(features, WRONG_GATES[fault](told), old))
    elif fault in VALUES:
        told = backend.model._told
        monkeypatch.setattr(backend.model, "_told", lambda bank: VALUES[fault](told(bank)))
    elif fault:
        topics = backend.model.topics
        right = topics.looks
        monkeypatch.setattr(topics, "looks", lambda features, *rest: right(features.at[:, 1:].add(features[:, :-1] - features[:, 1:]), *rest))
    assert agree(on_backend(backend, state, script, W), want) == (fault is None)


def test_an_older_state_is_stale_after_a_fold(folders):
    backend = mlx_kit.mlx(folders["gated"])
    _, window = backend.extend(np.arange(5), backend.start(1, None, W))
    folded = backend.fold(window)
    assert window.stale and not folded.stale and folded.folded == 5 and backend.fold(folded) is folded
    assert backend.memory(folded).written == 5 and not np.array_equal(backend.to_host(backend.memory(folded)), backend.to_host(backend.memory(window)))
    with pytest.raises(BackendError, match="cannot rewind to 3: the window's first 5 tokens are in the memory"):
        backend.rewind(folded, 3)


def test_what_a_window_refuses(folders, tmp_path):
    backend = mlx_kit.mlx(folders["gated"])
    with pytest.raises(BackendError, match="window of 4096 tokens does not fit the model's 2048 positions: choose another window"):
        backend.start(1, None, 4096)
    with pytest.raises(BackendError, match="17 tokens since the last fold do not fit in a chunk of 16: fold first"):
        backend.extend(np.arange(17), backend.start(1, None, W))
    released = mlx_kit.mlx(mlx_kit.folder(tmp_path / "r", "released-causal"))
    with pytest.raises(BackendError, match="cell released cannot fold"):
        released.fold(released.start(1))
    with pytest.raises(BackendError, match="cell released has windows of its chunk"):
        released.start(1, MemoryState(*released.model.initial_bank(1)[None], 0), W)
