"""An exported folder, its library or a session that does not fit it: one clear line that names the file and the remedy, exit code 1."""

import json
import os
import shutil
import subprocess

import numpy as np
import op_kit
import pytest
import tiny_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.export import export_model  # noqa: E402
from lm2.export.ops.build import C_SOURCES  # noqa: E402
from lm2.models.exported import file_digest  # noqa: E402

FEW = ("--max-tokens", "3", "--seed", "1", "--threads", "1")
ASK = ("-p", "x", *FEW)


@pytest.fixture(scope="session")
def kept(tiny, tmp_path_factory):
    """Two exports of the tiny model: one file, and weights beside the graph."""
    root = tmp_path_factory.mktemp("exports")
    export_model(tiny, root / "one")
    export_model(tiny, root / "two", inline_max=1)
    return root


@pytest.fixture
def exported(kept, tmp_path):
    """Copies, to be spoiled."""
    return {name: shutil.copytree(kept / name, tmp_path / name) for name in ("one", "two")}


def sealed(folder):
    """Write the folder's record anew, as a tool would that changed the files on purpose."""
    config = json.loads((folder / "config.json").read_text())
    for name in config["onnx"]["files"]:
        config["onnx"]["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
    (folder / "config.json").write_text(json.dumps(config))


def test_untouched_exports_answer(lm2, exported):
    """The control of what follows."""
    answers = {lm2("generate", folder, *ASK).out for folder in exported.values()}
    assert len(answers) == 1 and answers != {""}


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.999])
def test_a_flipped_byte(lm2, exported, name, at):
    file = exported["two"] / name
    body = bytearray(file.read_bytes())
    body[int(at * len(body))] ^= 1
    file.write_bytes(body)
    lm2("generate", exported["two"], *ASK).fails(file, "has sha256", "copy or export it again")


def test_a_flipped_byte_that_the_record_agrees_with(lm2, exported):
    """Only ONNX Runtime can tell: a graph that is no protobuf any more."""
    file = exported["one"] / "model.onnx"
    body = bytearray(file.read_bytes())
    body[0] ^= 0xFF
    file.write_bytes(body)
    sealed(exported["one"])
    lm2("generate", exported["one"], *ASK).fails(file, "does not open in ONNX Runtime", "export it again")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_missing_file(lm2, exported, name):
    file = exported["two"] / name
    file.unlink()
    lm2("generate", exported["two"], *ASK).fails(file, "is missing", "export the model again")


@pytest.mark.parametrize("change", ["cut", "of another export"])
def test_external_data_that_does_not_belong(lm2, exported, change, kept):
    file = exported["two"] / "model.onnx.data"
    body = file.read_bytes()
    file.write_bytes(body[:-100] if change == "cut" else bytes(len(body)))
    lm2("generate", exported["two"], *ASK).fails(file, "it was exported with", "export it again")


@pytest.mark.parametrize(("version", "said"), [(99, "opset"), (1, "opset")])
def test_an_opset_the_runtime_cannot_run(lm2, exported, version, said):
    folder = exported["one"]
    model = onnx.load(folder / "model.onnx")
    for entry in model.opset_import:
        entry.version = version if entry.domain == "" else entry.version
    onnx.save(model, folder / "model.onnx")
    sealed(folder)
    lm2("generate", folder, *ASK).fails(folder / "model.onnx", "does not open in ONNX Runtime", said, "--opset 23")


def test_an_opset_the_record_does_not_allow(lm2, exported):
    config = json.loads((exported["one"] / "config.json").read_text())
    config["onnx"]["opset"] = 12
    (exported["one"] / "config.json").write_text(json.dumps(config))
    lm2("generate", exported["one"], *ASK).fails("onnx.opset 12")


def test_a_session_of_another_model(lm2, exported, tmp_path):
    """Both ways, exported and not; the file stays as it is."""
    other, file = tiny_model.make(tmp_path / "other", seed=5, ends=()), tmp_path / "s.lm2s"
    assert lm2("chat", other, "--session", file, *FEW, stdin="x\n").code == 0
    before = file.read_bytes()
    lm2("chat", exported["one"], "--session", file, *FEW, stdin="x\n").fails(file, "was saved with model", "--new")
    export_model(other, tmp_path / "other-onnx")
    lm2("chat", exported["one"], "--session", file, *FEW, stdin="x\n").fails(file, "was saved with model")
    assert file.read_bytes() == before
    assert lm2("chat", tmp_path / "other-onnx", "--session", file, *FEW, stdin="x\n").code == 0


def future_library(folder):
    """The operator library as a later release of LM2 might build it: for an ONNX Runtime API that this one does not have."""
    for file in op_kit.OPS.iterdir():
        if file.suffix in (".c", ".h"):
            text = file.read_text(encoding="utf-8").replace("#define LM2_ORT_API_VERSION 17", "#define LM2_ORT_API_VERSION 999")
            (folder / file.name).write_text(text, encoding="utf-8")
    library = folder / "future.so"
    sources = [str(folder / n) for n in C_SOURCES]
    subprocess.run([op_kit.compiler(), *op_kit.FLAGS, "-fPIC", "-shared", *sources, "-o", str(library), "-lm"], check=True)
    return library


def other_library(folder):
    """A library without the entry point."""
    (folder / "x.c").write_text("int nothing(void) { return 0; }\n")
    subprocess.run([op_kit.compiler(), "-fPIC", "-shared", str(folder / "x.c"), "-o", str(folder / "x.so")], check=True)
    return folder / "x.so"


def no_library(folder):
    (folder / "text.so").write_text("not a library\n")
    return folder / "text.so"


@pytest.mark.parametrize(
    ("make", "said"),
    [(future_library, "lacks API version 999"), (other_library, "RegisterCustomOps"), (no_library, "text.so")],
)
def test_a_library_for_another_onnx_runtime(lm2, exported, tmp_path, monkeypatch, make, said):
    """And without a library the same folder answers."""
    library = make(tmp_path)
    monkeypatch.setattr("lm2.runtime.backends.onnx_cache.find_library", lambda kind, report=None: library)
    lm2("generate", exported["one"], *ASK).fails(library, "does not load into ONNX Runtime", said, "lm2 build-ops")
    monkeypatch.setattr("lm2.runtime.backends.onnx_cache.find_library", lambda kind, report=None: None)
    assert lm2("generate", exported["one"], *ASK).code == 0


def test_a_weight_that_is_no_number_any_more(lm2, exported):
    """Files that agree with their record but compute NaN end in one line too."""
    folder = exported["one"]
    model = onnx.load(folder / "model.onnx")
    norm = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
    values = onnx.numpy_helper.to_array(norm).copy()
    values[:] = np.nan
    norm.CopyFrom(onnx.numpy_helper.from_array(values, norm.name))
    onnx.save(model, folder / "model.onnx")
    sealed(folder)
    lm2("generate", folder, *ASK).fails("are NaN", "check that the weights are finite")


# Links, as in the hub's cache or a backup

ANSWERS = pytest.mark.skipif(os.name != "posix", reason="makes links")


@ANSWERS
@pytest.mark.parametrize("what", ["every file", "the graph", "the data", "the folder"])
def test_linked_files_answer(lm2, exported, tmp_path, what):
    """A link to the file where it was exported is followed, and what it leads to is not written to."""
    want = lm2("generate", exported["two"], *ASK)
    assert want.code == 0
    linked = tmp_path / "linked"
    before = (exported["two"] / "checked.json").read_bytes()
    if what == "the folder":
        linked.symlink_to(exported["two"])
    else:
        linked.mkdir()
        for file in exported["two"].iterdir():
            if what == "every file" or file.name == {"the graph": "model.onnx", "the data": "model.onnx.data"}.get(what):
                (linked / file.name).symlink_to(file)
            else:
                shutil.copy(file, linked)
        (linked / "checked.json").unlink()
        (linked / "checked.json").symlink_to(exported["two"] / "checked.json")
        os.utime(linked / "model.onnx", (1, 1), follow_symlinks=True)
    assert lm2("generate", linked, *ASK) == want
    assert (exported["two"] / "checked.json").read_bytes() == before
    traced = lm2("parity", linked, "--backends", f"onnx,onnx@{exported['two']}", "--chunks", "1", "--greedy", "0", "--explain")
    assert traced.code == 0, traced


@ANSWERS
@pytest.mark.parametrize("how", ["a hard link", "a blob"])
def test_linked_data_that_the_runtime_does_not_read(lm2, exported, tmp_path, how):
    """The line says that it is a link and how to get a copy, and that works."""
    folder = exported["two"]
    data = folder / "model.onnx.data"
    if how == "a hard link":
        os.link(data, tmp_path / "second")
    else:
        for name in ("model.onnx", "model.onnx.data"):
            shutil.move(folder / name, tmp_path / f"blob-{name.replace('.', '')}")
            (folder / name).symlink_to(tmp_path / f"blob-{name.replace('.', '')}")
    said = {"a hard link": "is one file under 2 names (hard links)", "a blob": f"is a link to {tmp_path / 'blob-modelonnxdata'}"}[how]
    line = lm2("generate", folder, *ASK).fails(data, said, f"cp -rL {folder} COPY")
    assert "--opset" not in line
    subprocess.run(["cp", "-rL", folder, tmp_path / "copy"], check=True)
    assert lm2("generate", tmp_path / "copy", *ASK).code == 0


@ANSWERS
def test_one_linked_file(lm2, exported, tmp_path):
    """Without data beside it a graph may be any link."""
    folder = exported["one"]
    want = lm2("generate", folder, *ASK)
    shutil.move(folder / "model.onnx", tmp_path / "blob")
    (folder / "model.onnx").symlink_to(tmp_path / "blob")
    os.link(tmp_path / "blob", tmp_path / "second")
    assert want.code == 0 and lm2("generate", folder, *ASK) == want
