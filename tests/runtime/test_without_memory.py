"""A model opened without its memory: the backbone alone, on every backend that can, and sessions that are its own."""

import command_line
import numpy as np
import pytest
import tiny_model
from compare import assert_close

from lm2.models.errors import BackendError
from lm2.runtime.backends.torch_backend import TorchBackend
from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampling
from lm2.runtime.session.session import Session
from lm2.runtime.statefile.record import SessionModelError

CELLS = ("gated", "released-causal")
MESSAGES = ("one", "two and three", "four", "five")
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module", params=CELLS)
def folder(request, tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model") / request.param, request.param, ends=())


def bare(folder, backend="torch"):
    return load(folder, backend, device="cpu", memory=False)


def talk(model, notify=None):
    """A conversation that outgrows a window of 64: the session, and every answer."""
    session = Session(model, sampling=GREEDY, seed=0, notify=notify, window=64)
    return session, [session.say(message, 5) for message in MESSAGES]


def test_it_is_the_backbone(folder):
    """What a memory that was never written adds is nothing (cell gated), and no bank is kept."""
    model, whole = bare(folder), load(folder, "torch", device="cpu")
    ids = np.arange(20)
    logits, window = model.backend.extend(ids, model.backend.start(1, window=64), all_logits=True)
    assert not model.remembers and model.backend.describe().state_bytes == 0
    assert model.backend.to_host(model.backend.commit(window)).shape[:2] == (0, 1)
    if whole.config.memory.cell == "gated":
        want, _ = whole.backend.extend(ids, whole.backend.start(1, window=64), all_logits=True)
        assert_close("logits", logits, want, 1e-6)


def test_a_session_slides_and_says_so(folder):
    said = []
    session, _ = talk(bare(folder), said.append)
    assert session.at.carried and said and all("what is older is forgotten" in line for line in said)
    assert bare(folder).window == 2048, "the window is not that of the memory's training"


def test_other_backends_answer_alike(folder):
    model = bare(folder)
    _, want = talk(model)
    static = load(folder, "torch", device="cpu", memory=False)
    object.__setattr__(static, "backend", TorchBackend(model.backend.model, static=True))
    assert talk(static)[1] == want
    pytest.importorskip("mlx.core")
    assert talk(bare(folder, "mlx"))[1] == want


def test_its_sessions_are_its_own(folder, tmp_path):
    file = tmp_path / "bare.lm2s"
    session, answers = talk(bare(folder))
    session.save(file)
    again = Session.restore(bare(folder), file)
    assert again.say("six", 5) == session.say("six", 5) and len(answers) == 4
    whole = load(folder, "torch", device="cpu")
    with pytest.raises(SessionModelError, match=r"bare\.lm2s was saved without a memory: go on with --no-memory"):
        Session.restore(whole, file)
    session = Session(whole, seed=0)
    session.say("one", 2)
    session.save(tmp_path / "whole.lm2s")
    with pytest.raises(SessionModelError, match=r"whole\.lm2s was saved with the memory of tiny: leave --no-memory out"):
        Session.restore(bare(folder), tmp_path / "whole.lm2s")


def test_onnx_leaves_it_out_of_the_file(folder, tmp_path):
    """A model folder is exported without it; an export has it or has it not."""
    pytest.importorskip("onnxruntime")
    from lm2.export.export import export_model
    from lm2.export.options import Options

    want, model = talk(bare(folder))[1], bare(folder, "onnx")
    assert talk(model)[1] == want and not model.remembers and model.backend.describe().state_bytes == 0
    for name, memory in (("on", True), ("off", False)):
        export_model(folder, tmp_path / name, Options(memory=memory))
    with pytest.raises(BackendError, match="with its memory inside, and cannot leave it out: export it anew with `lm2 export MODEL DST --no-memory`"):
        bare(tmp_path / "on", "auto")
    for opened in (load(tmp_path / "off"), bare(tmp_path / "off", "auto")):
        assert (opened.fingerprint, opened.config.memory.layers) == (bare(folder).fingerprint, ()) and talk(opened)[1] == want
    session, _ = talk(bare(folder))
    session.save(tmp_path / "bare.lm2s")
    again = Session.restore(load(tmp_path / "off"), tmp_path / "bare.lm2s")
    assert again.say("six", 5) == session.say("six", 5)


def test_the_command_leaves_it_out(folder, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    made = command_line.call(monkeypatch, ("export", folder, tmp_path / "off", "--no-memory"))
    assert made.code == 0 and not load(tmp_path / "off").remembers, made
    said = command_line.call(monkeypatch, ("export", folder, "--web", tmp_path / "web", "--no-memory"))
    assert said.code == 2 and "has the memory: leave those options out" in said.err, said
