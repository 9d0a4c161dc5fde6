"""torch and MLX side by side on tiny models of every cell: logits, banks over a hundred chunks, greedy tokens, sessions both ways."""

import dataclasses
import itertools

import numpy as np
import parity_kit
import pytest
import tiny

from lm2.models.errors import BackendError, ModelFileError
from lm2.runtime.parity.inputs import Inputs
from lm2.runtime.parity.run import Settings, compare
from lm2.runtime.parity.sessions import converse
from lm2.runtime.parity.sides import Spec, parse, same_model
from lm2.runtime.parity.window import script

mlx = pytest.importorskip("mlx.core")


def checks(pair):
    for c in pair.checks:
        print(f"{c.section:10} {c.name:60} {c.value:10.3g} {'' if c.gate is None else f'{c.relation} {c.gate:g}':10} {c.passed} {c.note}")
    return {(c.section, c.name): c for c in pair.checks}


@pytest.mark.slow
@pytest.mark.parametrize("cell", tiny.CELLS)
def test_a_hundred_chunks(tmp_path, cell):
    """Everything `lm2 parity --drift 100` judges, in float32."""
    a, b = parity_kit.sides(parity_kit.folder(tmp_path / "m", cell))
    pair = compare(a, b, Settings(chunks=8, drift=100, greedy=40, explain=True))
    found = checks(pair)
    assert pair.passed and pair.precision == "float32"
    assert pair.explanation.first is None and pair.explanation.traced
    assert len(pair.forced.carried) == 100 and len(pair.forced.banks) == 8
    drift = found["memory", "largest bank NMSE over 100 chunks"]
    assert drift.gate == 1e-10 and 0 < drift.value <= 1e-10, "two libraries do not round alike: exactly nothing means nothing was compared"
    assert pair.greedy.agreed == pair.greedy.tokens >= 40
    for h in pair.handovers:
        assert h.changed == 0 and h.written >= 1 and 0 < h.position < pair.conversation.window
        assert h.agreement.agreed == h.agreement.tokens >= 20
    assert [(h.source, h.target) for h in pair.handovers] == [("torch", "mlx"), ("mlx", "torch")]
    held, chunk, folding = pair.conversation, a.model.config.memory.chunk, cell.startswith("gated")
    assert held.window == (chunk * 5 // 4 if folding else chunk) and held.folds >= (4 if folding else 2) and (held.slides >= 1) == folding
    if not folding:
        assert pair.forced.window is None and not any(c.section == "window" for c in pair.checks)
        return
    seen = pair.forced.window
    assert (seen.script.carried, seen.script.folds, len(seen.script.tokens)) == (4, (6, 14, 30), 32) and sum(seen.script.calls) == 32
    assert seen.logits.positions == 32 and len(seen.banks) == 4 and 0 < max(map(max, seen.banks)) <= 1e-10
    assert found["window", "logits: relative L2"].gate == 1e-5 and found["window", "largest bank NMSE after a fold"].gate == 1e-10
    assert any(h.carried for h in pair.handovers), "a session moved in a window that had slid"


@pytest.mark.parametrize(("tokens", "most"), [(16, 2048), (16, 16), (16, 20), (9, 2048), (2, 2048), (1, 2048), (1, 16)])
@pytest.mark.parametrize("talking", [True, False])
def test_the_window_of_every_size_has_folds_in_it(tmp_path, tokens, most, talking):
    """Also with few tokens a chunk, and where the model has no more positions than a chunk."""
    a, b = parity_kit.sides(parity_kit.folder(tmp_path / "m", talking=talking, max_position_embeddings=most))
    inputs = Inputs(a.model, tokens, 0)
    given = script(a.model.config, inputs)
    assert given.folds and list(given.folds) == sorted(set(given.folds)) and given.carried < given.folds[0]
    assert len(given.tokens) == sum(given.calls) <= most and given.folds[-1] <= len(given.tokens)
    assert all(end - begin <= a.model.config.memory.chunk for begin, end in itertools.pairwise((given.carried, *given.folds, len(given.tokens))))
    ends = set(itertools.accumulate(given.calls))
    assert {*given.folds, given.carried} - {0} <= ends, "no call goes over a fold, or from what is carried into what is not"
    same = script(b.model.config, Inputs(a.model, tokens, 0))
    assert np.array_equal(given.tokens, same.tokens) and given.calls == same.calls
    pair = compare(a, b, Settings(chunks=1, tokens=tokens, greedy=8))
    checks(pair)
    assert pair.passed and pair.conversation.slides >= 1


def test_a_conversation_with_tokenizer_and_template(tmp_path):
    a, b = parity_kit.sides(parity_kit.folder(tmp_path / "m", talking=True))
    pair = compare(a, b, Settings(chunks=4, greedy=40))
    checks(pair)
    assert pair.passed
    assert pair.forced.kinds == ["text", "text", "text", "random"] and pair.forced.lengths == [16, 10, 16, 16]
    assert pair.forced.logits["text"].positions == 42 and pair.forced.logits["random"].positions == 16
    assert pair.greedy.tokens == 40


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, dtype):
    path = parity_kit.folder(tmp_path / "m")
    a, _ = parity_kit.sides(path)
    b = parity_kit.sides(path, dtype=dtype)[1]
    pair = compare(a, b, Settings(chunks=4, greedy=0))
    found = checks(pair)
    assert pair.precision == dtype and pair.passed and pair.greedy is None
    assert found["logits", "relative L2"].value > 1e-5, "half precision within the gate of float32 would not be half precision"


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "passes"), [(8, True), (4, False)])
def test_quantised(tmp_path, bits, passes):
    """8 bits hold; 4 bits rounded from a random model do not, and the report says so."""
    from lm2.lm2_mlx.quantize import quantize_folder
    from lm2.runtime.loading import load

    path = parity_kit.folder(tmp_path / "m", talking=True, intermediate_size=64)
    quantize_folder(path, tmp_path / "q", bits, 32)
    a, _ = parity_kit.sides(path)
    b = same_model(a, load(tmp_path / "q", "mlx", "cpu", "float32"), f"mlx@{tmp_path / 'q'}")
    pair = compare(a, b, Settings(chunks=48, greedy=20))
    found = checks(pair)
    assert pair.precision == "quantised" and pair.passed == passes
    judged = {name for (_, name), c in found.items() if c.gate is not None}
    assert {"same likeliest token", "mean KL divergence"} <= judged and "largest difference" not in judged
    assert found["sessions", f"torch to {b.label}: numbers of the bank changed"].passed, "a session moves to a packed copy of its model"


def test_the_same_backend_twice_is_bit_identical(tmp_path):
    """Fed in the same calls, each backend repeats itself to the last bit."""
    path = parity_kit.folder(tmp_path / "m")
    for name in ("torch", "mlx"):
        pair = compare(*parity_kit.sides(path, name, name), Settings(chunks=3, greedy=0))
        assert pair.forced.all_logits.largest == 0 and max(map(max, pair.forced.banks)) == 0


def test_inputs_follow_from_the_seed(tmp_path):
    a, _ = parity_kit.sides(parity_kit.folder(tmp_path / "m", talking=True), second="torch")
    one, two, other = Inputs(a.model, 16, 7), Inputs(a.model, 16, 7), Inputs(a.model, 16, 8)
    late = two.chunk(5)
    for c in range(6):
        x, y = one.chunk(c), two.chunk(c)
        assert np.array_equal(x.tokens, y.tokens) and x.calls == y.calls and x.kind == y.kind
        assert sum(map(len, x.pieces())) == len(x.tokens) == sum(x.calls)
    assert np.array_equal(late.tokens, one.chunk(5).tokens)
    assert any(not np.array_equal(one.chunk(c).tokens, other.chunk(c).tokens) for c in range(4))
    text = [i for c in (0, 1, 2) for i in one.chunk(c).tokens]
    assert text == one.text(42), "text chunks go on where the last one stopped"


def test_a_difference_is_found_where_it_is(tmp_path):
    """The other side holds the same conversation on another model: where it parts is named, with the gap."""
    a, b = parity_kit.sides(parity_kit.folder(tmp_path / "m"), second="torch")
    wrong = parity_kit.sides(parity_kit.folder(tmp_path / "w", seed=4), second="torch")[1]
    wrong = dataclasses.replace(wrong, model=dataclasses.replace(wrong.model, fingerprint=a.model.fingerprint))
    inputs = Inputs(a.model, 16, 0)
    same = converse(a, b, inputs, 20).agreement
    assert same.whole and same.gap is None
    held = converse(a, wrong, inputs, 20)
    found, handovers = held.agreement, held.handovers
    assert not found.whole and found.agreed < 20 and found.turn >= 0 and found.gap > 0
    assert not all(h.agreement.whole for h in handovers)


def test_another_model_is_refused(tmp_path):
    a, _ = parity_kit.sides(parity_kit.folder(tmp_path / "m"), second="torch")
    other = parity_kit.sides(parity_kit.folder(tmp_path / "o", "gated-4T"), second="torch")[0].model
    with pytest.raises(ModelFileError, match=r"mlx@x is another model than torch: memory"):
        same_model(a, other, "mlx@x")


def test_entries_of_backends():
    assert parse("torch, mlx") == [Spec("torch", "torch"), Spec("mlx", "mlx")]
    assert parse("torch:float64,torch:cuda:1:bfloat16,mlx:cpu@a/b@c")[1:] == [
        Spec("torch:cuda:1:bfloat16", "torch", "bfloat16", "cuda:1"),
        Spec("mlx:cpu@a/b@c", "mlx", "", "cpu", "a/b@c"),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("torch", "at least two"), ("torch,", "must begin"), ("torch,jax", "'jax'"), ("torch,torch", "twice"), ("torch,mlx@", "ends with @"),
        ("torch,mlx:float16:bfloat16", "'bfloat16'"), ("torch,mlx:cpu:gpu", "'gpu'"), ("torch,mlx:1", "'1'"), ("torch,mlx:", "''"),
    ],
)  # fmt: skip
def test_wrong_entries_are_named(text, word):
    with pytest.raises(BackendError, match=word):
        parse(text)
