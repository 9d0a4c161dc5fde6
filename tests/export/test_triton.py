"""`lm2 export --triton`: the repository is what Triton Inference Server reads, and a conversation whose state the server keeps says what the
backend says. The server itself is not here; tests/triton_kit.py plays its part.
"""

import json

import numpy as np
import onnx_kit
import pytest
import triton_kit
from click.testing import CliRunner
from compare import assert_close

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from triton_kit import Refused, Server

from lm2.cli import group
from lm2.export.ops.build import BuildError
from lm2.export.options import Options
from lm2.export.triton import export_repository

CELLS = ["gated", "gated-eye", "gated-4T", "gated-topics", "released-causal", "released-chunk"]


def repository(root, name="gated", options=Options(), **more):
    """A repository of a random tiny model; the model's folder in it, and the backend on the same export."""
    import mlx_kit

    source = mlx_kit.folder(root / "tiny model", name)
    summary = export_repository(source, root / "repo", options, **more)
    folder = root / "repo" / summary["triton"]["model"]
    return folder, onnx_kit.backend(folder / "1"), summary


def call(server, ids, new, first=0, carry=0):
    """A request's inputs; carry where the model takes it, cell gated."""
    numbers = {"new_chunk": int(new), "logits_from": first} | ({"carry": carry} if "carry" in server.inputs else {})
    return {"input_ids": np.array([ids])} | {name: np.array([n]) for name, n in numbers.items()}


def converse(server, backend, name, lengths, state=None, seed=0):
    """A generator: a request a step, chunks of `lengths` tokens cut in two calls, compared with the backend."""
    rng, start = np.random.default_rng(seed), True
    for length in lengths:
        ids = rng.integers(0, backend.config.vocab_size, length)
        chunk = backend.start(1, state)
        for part in (ids[:4], ids[4:]):
            got = server.infer(name, call(server, part, chunk.length == 0), start=start)["logits"]
            want, chunk = backend.extend(part, chunk, all_logits=True)
            assert_close("logits", got, want, 2e-5, 1e-4)
            start = False
            yield
        state = backend.commit(chunk)


@pytest.mark.parametrize("name", CELLS)
def test_the_server_keeps_each_conversation(tmp_path, name):
    """Two conversations in turn over four chunks of unequal length, each its own memory, as the backend has it; state of a fixed size."""
    folder, backend, summary = repository(tmp_path, name)
    server = Server(folder)
    full = backend.config.memory.chunk
    a = converse(server, backend, 7, (full, 5, full - 1, 7), seed=1)
    b = converse(server, backend, 8, (6, full, full, 5), seed=2)
    for _ in zip(a, b, strict=True):
        sizes = {k: sum(v.nbytes for v in s.values()) for k, s in server.sequences.items()}
        assert set(sizes.values()) == {summary["triton"]["state_bytes"]}
    assert server.sequences[7]["past_written"] == [full + 5 + full - 1]


@pytest.mark.parametrize("name", ["gated", "gated-4T", "gated-topics"])
def test_windows_and_folds(tmp_path, name):
    """Turns with a fold before each, a window that is full and one that carries tokens over, as docs/onnx.md has them; the backend says the same."""
    folder, backend, summary = repository(tmp_path, name, Options(window=40, plain=True))
    assert summary["triton"]["window"] == 40 and "2, 40, 8" in (folder / "config.pbtxt").read_text()
    server, rng = Server(folder), np.random.default_rng(4)
    state, start = None, True
    for carried, lengths in ((0, (9, 12, 16, 3)), (20, (20, 7, 10))):
        window = backend.start(1, state, 40, carried)
        for i, length in enumerate(lengths):
            ids = rng.integers(0, backend.config.vocab_size, length)
            new = 1 if window.length == 0 else 3
            window = backend.fold(window)
            got = server.infer(1, call(server, ids, new, carry=carried), start=start)["logits"]
            want, window = backend.extend(ids, window, all_logits=True)
            assert_close(f"window of {carried} carried, turn {i}", got, want, 2e-5, 1e-4)
            start = False
        state = backend.commit(window)
    got = server.infer(1, call(server, np.array([0]), 2), ("present_bank", "present_written"), end=True)
    assert got["present_written"] == [state.written] == [40 + 17]
    assert_close("bank", got["present_bank"][0], state.bank[:, 0], 1e-6)


def test_a_client_can_take_the_memory(tmp_path):
    """A last call with new_chunk = 2, as docs/onnx.md has it, gives the bank that the backend commits."""
    folder, backend, _ = repository(tmp_path)
    server, ids, full = Server(folder), np.arange(11), backend.config.memory.chunk
    asked = ("present_bank", "present_written")
    first = np.arange(full)
    server.infer(1, call(server, first, True), start=True)
    server.infer(1, call(server, ids, True, -1))
    got = server.infer(1, call(server, np.array([0]), 2, -1), asked, end=True)
    _, chunk = backend.extend(first, backend.start())
    _, chunk = backend.extend(ids, backend.start(1, backend.commit(chunk)))
    assert got["present_written"] == [full + 11] and not server.sequences
    assert_close("bank", got["present_bank"][0], backend.to_host(backend.commit(chunk))[:, 0], 1e-6)


def test_layout_and_library(tmp_path, monkeypatch):
    """Model file and export record in the version's folder, the library where the configuration names it, at the server's path if one is given."""
    folder, _, summary = repository(tmp_path)
    assert summary["triton"]["model"] == folder.name
    assert {"model.onnx", "config.json"} <= {p.name for p in (folder / "1").iterdir()}
    config = triton_kit.parse((folder / "config.pbtxt").read_text())
    assert list(config.model_operations.op_library_filename) == [str(folder / "lm2_ops.so")] and (folder / "lm2_ops.so").is_file()
    assert config.sequence_batching.max_sequence_idle_microseconds >= 60_000_000
    source = tmp_path / "tiny model"
    assert folder.name == "tiny-model"
    there = export_repository(source, tmp_path / "there", Options(), root="/models/")
    assert there["triton"]["library"] == f"/models/{folder.name}/lm2_ops.so"
    plain = export_repository(source, tmp_path / "plain", Options(plain=True))
    assert plain["triton"]["library"] == ""
    half = export_repository(source, tmp_path / "half", Options("fp16"))
    text = (tmp_path / "half" / half["triton"]["model"] / "config.pbtxt").read_text()
    assert "KIND_GPU" in text and "TYPE_FP16" in text and "op_library_filename" not in text

    def fails(*_):
        raise BuildError("no C compiler found: install one")

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("lm2.export.triton.own_library", fails)
    notes = []
    without = export_repository(source, tmp_path / "without", Options(), report=lambda e: e.note and notes.append(e.stage))
    assert without["triton"]["library"] == "" and "no C compiler found" in notes[0]
    Server(tmp_path / "without" / folder.name)


def test_names_with_odd_letters(tmp_path):
    from dataclasses import replace

    import tiny

    from lm2.models.weights import random_model, save_folder

    save_folder(random_model(replace(tiny.CELLS["gated"], name='my "model" / 2'), seed=3), tmp_path / "m")
    summary = export_repository(tmp_path / "m", tmp_path / 'a "b"')
    assert summary["triton"]["model"] == "my-model-2"
    Server(tmp_path / 'a "b"' / "my-model-2")


def smaller_window(config):
    """Keys of half the positions, in both places where the configuration says how many."""
    (s,) = (s for s in config.sequence_batching.state if s.input_name == "past_key.0")
    s.dims[2] = s.initial_state[0].dims[2] = s.dims[2] // 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.sequence_batching.state.pop(), "inputs, model provides"),
        (lambda c: c.input.pop(), "inputs, model provides"),
        (lambda c: c.sequence_batching.state[3].ClearField("initial_state"), "initial_state must name itself"),
        (lambda c: c.sequence_batching.state[3].initial_state[0].ClearField("name"), "initial_state must name itself"),
        (lambda c: c.sequence_batching.state[3].dims.append(1), "initial_state must name itself"),
        (lambda c: setattr(c.sequence_batching.state[3], "data_type", 8), "not a state of this type"),
        (lambda c: setattr(c, "max_batch_size", 4), "max_batch_size"),
        (smaller_window, "past_key.0: dims"),
        (lambda c: c.output[0].dims.pop(), "logits: dims"),
    ],
)
def test_the_checks_find_mistakes(tmp_path, change, said):
    """Negative controls: a configuration that is wrong in one place is refused."""
    folder, _, _ = repository(tmp_path)
    config = triton_kit.parse((folder / "config.pbtxt").read_text())
    change(config)
    with pytest.raises(Refused, match=said):
        Server(folder, config)


def test_state_that_begins_or_goes_around_wrongly_shows(tmp_path):
    """Negative controls for the numbers: an eye bank that begins as zeros, and writes that are never fed back."""
    folder, backend, _ = repository(tmp_path, "gated-eye")
    text = (folder / "config.pbtxt").read_text()
    full = backend.config.memory.chunk
    wrong = triton_kit.parse(text.replace('data_file: "past_bank"', "zero_data: true"))
    with pytest.raises(AssertionError):
        list(converse(Server(folder, wrong), backend, 1, (full,)))
    server = Server(folder)
    right = server.infer

    def forgetful(conversation, *args, **more):
        out = right(conversation, *args, **more)
        server.sequences[conversation]["past_writes"][:] = 0
        return out

    server.infer = forgetful
    with pytest.raises(AssertionError):
        list(converse(server, backend, 1, (full, 5)))


def test_requests_that_do_not_fit_are_refused(tmp_path):
    """What docs/onnx.md asks a client for is what the configuration takes: one conversation a request, START first."""
    folder, _, summary = repository(tmp_path, sequences=2)
    server = Server(folder)
    with pytest.raises(Refused, match="START"):
        server.infer(1, call(server, [1, 2], True))
    with pytest.raises(Refused, match="shape"):
        server.infer(1, call(server, [1, 2], True) | {"input_ids": np.zeros((2, 3), np.int64)}, start=True)
    with pytest.raises(Refused, match="expected inputs"):
        server.infer(1, {"input_ids": np.zeros((1, 3), np.int64)}, start=True)
    server.infer(2, call(server, [1], True), start=True)
    with pytest.raises(Refused, match="no slot"):
        server.infer(3, call(server, [1], True), start=True)
    assert summary["triton"]["sequences"] == 2


def test_command(tmp_path):
    import mlx_kit

    source = mlx_kit.folder(tmp_path / "m", "gated")

    def run(*words):
        return CliRunner().invoke(group, ["export", str(source), *map(str, words)])

    result = run("--triton", tmp_path / "repo", "--triton-root", "/models", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (
        summary["triton"]["library"].startswith("/models/") and (tmp_path / "repo" / summary["triton"]["model"] / "config.pbtxt").is_file()
    )
    text = run("--triton", tmp_path / "again")
    assert "16 conversations at once, windows of 2048 tokens" in text.output and f"written to {tmp_path / 'again'}" in text.output
    for words, said in (
        ((), "give a destination"),
        ((tmp_path / "a", "--triton", tmp_path / "b"), "give a destination"),
        ((tmp_path / "a", "--triton-root", "/m"), "needs --triton"),
        ((tmp_path / "a", "--window", "0"), "0 is not in the range"),
    ):
        failed = run(*words)
        assert failed.exit_code == 2 and said in failed.output
    assert not (tmp_path / "a").exists()
