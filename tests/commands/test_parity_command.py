"""`lm2 parity` as a user types it: exit codes, the table, the JSON that docs/parity.md describes, and what is said of a wrong command line."""

import json

import parity_kit
import pytest

pytest.importorskip("mlx.core")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices: a second thread of torch only waits, and takes a core from others while it does."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of one model, of another with the same shape, and of one with another shape."""
    root = tmp_path_factory.mktemp("parity")
    return {
        "one": parity_kit.folder(root / "one", talking=True),
        "other": parity_kit.folder(root / "other", talking=True, seed=4),
        "wide": parity_kit.folder(root / "wide", "gated-4T"),
    }


def test_a_table_for_people(lm2, models):
    result = lm2(
        "parity", models["one"], "--backends", "torch,mlx", "--chunks", "3", "--greedy", "20", "--seed", "5", "--explain", "--device", "cpu"
    )
    assert result.code == 0, result
    for words in (
        "seed 5",
        "torch: torch ",
        "mlx: mlx ",
        "relative L2",
        "<= 1e-05",
        "bank NMSE after chunk 3",
        "32 tokens, 4 carried over, folded at 6, 14, 30",
        "slides, in a window of 20 tokens",
        "greedy tokens",
        "PASS: ",
        "tensors agree",
    ):
        assert words in result.out, words
    assert "FAIL" not in result.out and not result.err


@pytest.mark.slow
def test_json_for_programs(lm2, models):
    args = (
        "parity",
        models["one"],
        "--backends",
        "torch,mlx,torch:bfloat16",
        "--chunks",
        "4",
        "--tokens",
        "9",
        "--greedy",
        "20",
        "--explain",
        "--json",
    )
    result = lm2(*args)
    report = json.loads(result.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert result.code == 0 and report["passed"] is True
    assert (report["format"], report["version"]) == ("lm2-parity", 2)
    assert set(report) == {"format", "version", "passed", "model", "input", "reference", "pairs", "made_by"}
    assert report["input"]["lengths"] == [9, 5, 9, 9] and report["input"]["kinds"] == ["text", "text", "text", "random"]
    assert report["reference"]["label"] == "torch" and report["reference"]["dtype"] == "float32"
    first, second = report["pairs"]
    assert [p["gates"] for p in (first, second)] == ["float32", "bfloat16"]
    assert set(first) == {
        "candidate", "gates", "passed", "checks", "logits", "banks", "own_banks", "own_logits", "greedy", "sessions", "explanation",
        "window", "conversation",
    }  # fmt: skip
    assert set(first["logits"]) == {"all", "text", "random"} and first["logits"]["all"]["positions"] == 32
    assert len(first["banks"]) == 4 and all(len(banks) == 2 for banks in first["banks"])
    assert first["greedy"]["agreed"] == first["greedy"]["tokens"] >= 20 and first["greedy"]["first_difference"] is None
    assert [(s["from"], s["to"], s["changed"]) for s in first["sessions"]] == [("torch", "mlx", 0), ("mlx", "torch", 0)]
    assert first["conversation"]["window"] == 20 and first["conversation"]["slides"] >= 1 and first["conversation"]["folds"] > 4
    assert set(first["sessions"][0]) == {"from", "to", "written", "position", "carried", "folds", "changed", "bank", "greedy"}
    assert (first["window"]["carried"], first["window"]["folds"]) == (2, [3, 7, 16]) and len(first["window"]["banks"]) == 4
    assert first["explanation"]["first"] is None and first["explanation"]["tensors"][0]["name"] == "first bank"
    for check in first["checks"]:
        assert set(check) == {"section", "name", "value", "relation", "gate", "passed", "note"}
    assert lm2(*args).out == result.out, "the same seed, the same report"


def test_two_different_models_fail(lm2, models):
    """Weights of another seed in the second folder: exit code 1, FAIL in the table, and the first tensor named."""
    result = lm2("parity", models["one"], "--backends", f"torch,mlx@{models['other']}", "--chunks", "2", "--greedy", "0", "--explain")
    assert result.code == 1 and "FAIL: " in result.out
    assert "first disagreement: chunk 1, embedding" in result.out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--backends", "torch"], "at least two"),
        (["--backends", "torch,jax"], "'jax'"),
        (["--backends", "torch,mlx", "--tokens", "17"], "a chunk of 16"),
        (["--backends", "torch,mlx", "--chunks", "0"], "--chunks"),
        (["--backends", "torch,mlx", "--dtype", "float8"], "--dtype"),
        ([], "--backends"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(lm2, models, args, word):
    result = lm2("parity", models["one"], *args)
    assert result.code == 2 and word in result.err


def test_models_that_cannot_be_compared(lm2, models):
    lm2("parity", models["one"], "--backends", f"torch,mlx@{models['wide']}").fails(
        "is another model than torch", "give a folder made from it"
    )
    lm2("parity", models["one"], "--backends", "torch,mlx@nowhere").fails("nowhere", "does not exist")
    lm2("parity", models["one"], "--backends", "torch,mlx:cuda:7").fails("cuda:7")
