"""The reliability harness, a few seconds of each part, and that it finds what it is there to find."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = ROOT / "benchmarks" / "reliability"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="forks, /proc")


def harness(script, *args):
    """Run a script of the harness; what it printed. It must have found nothing."""
    command = [sys.executable, str(HARNESS / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_fuzz():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    lines = harness("fuzz.py", "all", "--inputs", "40", "--seed", "7").splitlines()
    assert len(lines) == 9 and all(", 0 findings" in line and " 0 accepted" not in line for line in lines)


@pytest.mark.slow
def test_fields_of_families():
    pytest.importorskip("transformers")
    (line,) = harness("family_fields.py", "gemma3_text", "--shapes", "1", "--field", "query_pre_attn_scalar").splitlines()
    assert ", 0 wrong;" in line and " 0 the same" not in line and " 0 refused" not in line


@pytest.mark.slow
def test_kill():
    lines = harness("kill.py", "save", "convert", "--kills", "5", "--seed", "7").splitlines()
    assert len(lines) == 2 and all("killed 5" in line and "0 findings" in line for line in lines)


def test_disk():
    probe = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this system does not let a user mount a tmpfs of their own")
    (line,) = harness("disk.py", "save", "--tries", "8", "--seed", "7").splitlines()
    assert "0 findings" in line and "2 of 2 in one line" in line and "8 times" in line


@pytest.mark.slow
def test_two_processes():
    (line,) = harness("twice.py", "chat", "--rounds", "3", "--seed", "7").splitlines()
    assert "0 findings" in line and "done" in line


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.syspath_prepend(str(HARNESS))
    import watch

    monkeypatch.setattr(watch, "SECONDS_MAX", 0.5)
    monkeypatch.setattr(watch, "GROWTH_BYTES_MAX", 100 << 20)
    return watch


def kinds(out):
    return [key for key, _, _ in out.findings]


def test_what_the_watch_sees(watch):
    """A crash, a hang, growth, an error nobody meant, something accepted that is wrong: each at its input, the others still run."""
    from kit import Wrong

    def one(index):
        if index == 1:
            os.abort()
        if index == 2:
            time.sleep(60)
        if index == 3:
            return len(bytearray(200 << 20)) > 0
        if index == 4:
            raise KeyError("x")
        if index == 5:
            raise Wrong("other values")
        return index % 2 == 0

    out = watch.watch(8, one)
    assert [(key.split(" at ")[0], index) for key, index, _ in out.findings] == [
        ("crash SIGABRT", 1), ("hang over 0 s", 2), ("memory", 3), ("KeyError", 4), ("wrong: other values", 5),
    ]  # fmt: skip
    assert out.inputs == 8


def test_a_wrong_reader_is_found(watch, monkeypatch, tmp_path):
    """Were the reader to swap two axes, or to give an untyped error, the run would say so."""
    import fuzz
    from targets import open_target

    from lm2.models import tensorfile

    real = tensorfile._entry
    with open_target("safetensors", tmp_path) as target:
        assert not fuzz.fuzz(target, 50, 1).findings
        monkeypatch.setattr(tensorfile, "_entry", lambda *a: (lambda t: type(t)(t.name, t.dtype, t.shape[::-1], t.begin, t.end))(real(*a)))
        with pytest.raises(AssertionError, match="shape of"):
            fuzz.fuzz(target, 50, 1)
        monkeypatch.setattr(tensorfile, "_entry", lambda *a: real(*a) if a[1] in ("a", "b", "c") else {}[a[1]])
        with pytest.raises(KeyError):
            fuzz.fuzz(target, 50, 1)


def test_a_small_input_stays_a_finding(watch, tmp_path):
    """An input is made small by leaving out what the fault does not need."""
    from minimise import minimise
    from targets import Target

    def check(data):
        if b"!" in data and b"?" in data:
            raise KeyError("x")
        return True

    key = watch.watch(1, lambda _: check(b"!?")).findings[0][0]
    assert minimise(Target("x", [], lambda rng, data: data, check), b"abc!defghij?klm", key) == b"!?"
