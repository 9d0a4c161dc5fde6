"""`lm2 pull` of a GGUF file that several wheels carry, and licences: said, asked for on a terminal, refused without one. Fake wheels, no hub."""

import dataclasses
import itertools
import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys

import command_line
import pytest
import sources
import wheel_kit
from wheel_kit import digest

from lm2.models.checkpoints import catalog, wheels
from lm2.models.checkpoints.catalog import Entry, License, PinnedFile, Wheels
from lm2.models.checkpoints.fetch import Unreachable
from lm2.models.checkpoints.pull import installed_source, pull
from lm2.models.errors import DownloadError, LicenseError
from lm2.models.home import home
from lm2.models.layout import open_folder
from lm2.runtime.loading import find_model, load

OWN = License("Tiny Terms", "https://example.org/terms", accept=True)
GGUF = "tiny.gguf"
ENTRY = "import pickle; from lm2.models.checkpoints import catalog; catalog.CATALOG['tiny'] = pickle.loads({!r})"


def member(number):
    return f"tiny_part{number}/data/{GGUF}.part{number}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A GGUF file in two wheels, and what the catalogue says of them."""
    root = tmp_path_factory.mktemp("origin")
    sources.write_gguf(root / GGUF, sources.llama(), "Q4_1")
    whole = (root / GGUF).read_bytes()
    cuts = [0, len(whole) // 3 + 1, len(whole)]
    parts = []
    for number, (begin, end) in enumerate(itertools.pairwise(cuts), 1):
        wheel = wheel_kit.write_wheel(root / "wheels", f"tiny-part{number}", {member(number): whole[begin:end]})
        parts.append(wheel_kit.pinned(wheel, f"tiny-part{number}", member(number)))
    return root / "wheels", whole, tuple(parts)


@pytest.fixture
def entry(made, tmp_path, monkeypatch):
    """A catalog with one tiny model out of two wheels, free to use; pip sees only those."""
    folder, whole, parts = made
    value = Entry("tiny", "Tiny", License("MIT", "https://example.org/mit"), None, Wheels(parts, PinnedFile(digest(whole), len(whole)), GGUF, "Q4_1"))
    monkeypatch.setitem(catalog.CATALOG, "tiny", value)
    wheel_kit.only_these(monkeypatch, folder, tmp_path)
    return value


@pytest.fixture
def owned(entry, monkeypatch):
    """The same model, under a licence that must be accepted."""
    value = dataclasses.replace(entry, license=OWN)
    monkeypatch.setitem(catalog.CATALOG, "tiny", value)
    return value


@pytest.fixture
def lm2(monkeypatch):
    return lambda *args, **options: command_line.call(monkeypatch, args, **options)


def with_parts(monkeypatch, entry, parts):
    value = dataclasses.replace(entry, wheels=dataclasses.replace(entry.wheels, parts=tuple(parts)))
    monkeypatch.setitem(catalog.CATALOG, "tiny", value)


def left_over():
    """Everything in the home folder but lock files."""
    return sorted(str(p.relative_to(home())) for p in home().rglob("*") if p.is_file() and p.suffix != ".lock")


# Joined parts


def test_parts_are_joined_in_order(entry, made):
    events = []
    folder = pull("tiny", report=events.append)  # no hub is tried: it has none
    assert (home() / "downloads" / GGUF).read_bytes() == made[1]
    assert open_folder(folder).config.name == "tiny" and installed_source(folder) == "wheel"
    record = json.loads((folder / "source.json").read_text())
    assert record["packages"] == [{"package": f"tiny-part{n}==1.0", "sha256": entry.wheels.parts[n - 1].file.sha256} for n in (1, 2)]
    for part in entry.wheels.parts:
        assert any(e.stage == f"downloading {part.package}" and e.done == part.file.size for e in events)
    assert any(e.stage == f"unpacking {GGUF}" and e.done == e.total == len(made[1]) for e in events)
    said = [e.stage for e in events if e.note]
    assert said[0] == "Tiny: licence MIT, https://example.org/mit" and "Tiny from the packages tiny-part1 1.0, tiny-part2 1.0 (weights Q4_1)" in said[1]
    assert said[-1] == "note: it has no chat template: a conversation is shown to it as `User: ...` and `Assistant:`"
    assert [p for p in left_over() if "models/tiny/" not in p] == [f"downloads/{GGUF}"]


def test_a_part_that_is_not_to_be_had(entry, monkeypatch):
    parts = entry.wheels.parts
    with_parts(monkeypatch, entry, (parts[0], dataclasses.replace(parts[1], version="9.9")))
    with pytest.raises(Unreachable, match="cannot download tiny-part2==9.9 with pip"):
        pull("tiny")
    assert left_over() == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_wrong_part_is_never_opened(entry, monkeypatch, number):
    opened = []
    monkeypatch.setattr(wheels.zipfile, "ZipFile", lambda *args: opened.append(args))
    parts = list(entry.wheels.parts)
    parts[number - 1] = dataclasses.replace(parts[number - 1], file=PinnedFile("0" * 64))
    with_parts(monkeypatch, entry, parts)
    with pytest.raises(DownloadError, match=f"tiny_part{number}-1.0-py3-none-any.whl has sha256 .*, expected {'0' * 64}.*removed; try again$"):
        pull("tiny")
    assert not opened and left_over() == []


@pytest.mark.parametrize("order", [(1, 0), (0,)])
def test_right_parts_wrongly_joined_are_found_by_the_pin_of_the_whole(entry, made, monkeypatch, order):
    with_parts(monkeypatch, entry, [entry.wheels.parts[i] for i in order])
    with pytest.raises(DownloadError, match=f"{GGUF} has sha256 .*, expected {digest(made[1])}"):
        pull("tiny")
    assert left_over() == [] and catalog.resolve("tiny") is None


def test_a_member_that_is_not_there(entry, monkeypatch):
    parts = entry.wheels.parts
    with_parts(monkeypatch, entry, (parts[0], dataclasses.replace(parts[1], member="tiny_part2/other")))
    with pytest.raises(DownloadError, match="tiny_part2-1.0-py3-none-any.whl has no tiny_part2/other"):
        pull("tiny")
    assert left_over() == []


KILLED = """
import os, signal
from lm2.models.checkpoints.pull import pull

def report(event):
    if event.stage == "checking tiny_part2-1.0-py3-none-any.whl" and event.done:
        os.kill(os.getpid(), signal.SIGKILL)

pull("tiny", report=report)
"""


def test_killed_at_its_second_part(entry, made):
    killed = subprocess.run([sys.executable, "-c", ENTRY.format(pickle.dumps(entry)) + KILLED], timeout=120)
    assert killed.returncode == -signal.SIGKILL and any("tiny_part1" in name for name in left_over()) and catalog.resolve("tiny") is None
    open_folder(pull("tiny"))
    assert [p for p in left_over() if "models/tiny/" not in p] == [f"downloads/{GGUF}"]


def test_a_model_without_a_hub(entry):
    with pytest.raises(DownloadError, match="tiny is not pinned on a hub: leave --source out"):
        pull("tiny", "hub")
    assert not home().exists()


def test_the_catalogue_itself():
    """Every file is pinned, and a name leads to one kept GGUF file of its own unless the weights are the same."""
    kept = {}
    for name, entry in catalog.CATALOG.items():
        assert name == entry.name and entry.license.url.startswith("https://")
        pins = [part.file for part in entry.wheels.parts] + [entry.wheels.gguf, *(entry.hub.files.values() if entry.hub else ())]
        assert all(re.fullmatch("[0-9a-f]{64}", pin.sha256) for pin in pins) and all(part.file.size for part in entry.wheels.parts)
        assert kept.setdefault(entry.wheels.gguf_name, entry.wheels.gguf) == entry.wheels.gguf
        assert entry.hub is None or re.fullmatch("[0-9a-f]{40}", entry.hub.revision)
    gemma = catalog.CATALOG["gemma3-270m"]
    assert gemma.license.accept and [part.member[-6:] for part in gemma.wheels.parts] == ["part00", "part01", "part02", "part03"]


# Licences


def test_a_licence_that_must_be_accepted_is_refused_without_a_terminal(owned, lm2):
    result = lm2("pull", "tiny")
    result.fails("Tiny Terms", "https://example.org/terms", "run `lm2 pull tiny --accept-license`", "nothing was fetched")
    assert not home().exists()


@pytest.mark.parametrize("use", [load, find_model, lambda name: pull(name, force=True)])
def test_nothing_accepts_for_the_user(owned, use):
    with pytest.raises(LicenseError, match="`lm2 pull tiny --accept-license`") as caught:
        use("tiny")
    assert not isinstance(caught.value, Unreachable), "chat would fall back to the model that comes with the package"
    assert not home().exists()


def test_a_chat_with_it_does_not_accept_either(owned, lm2):
    lm2("chat", "tiny", stdin="y\n").fails("--accept-license")
    lm2("generate", "tiny", "-p", "x", stdin="y\n").fails("--accept-license")
    assert not home().exists()


def test_accepted_by_the_flag(owned, lm2):
    result = lm2("pull", "tiny", "--accept-license", "--json")
    folder = home() / "models" / "tiny"
    assert result.code == 0 and json.loads(result.out)["path"] == str(folder)
    assert result.err.splitlines()[0] == "Tiny: licence Tiny Terms, https://example.org/terms, accepted"
    assert find_model("tiny") == folder, "what is there can be used"
    assert lm2("pull", "tiny").code == 0, "and is not asked about again"
    kept = open_folder(folder).fingerprint
    lm2("pull", "tiny", "--force").fails("--accept-license")
    assert open_folder(folder).fingerprint == kept
    assert lm2("pull", "tiny", "--force", "--accept-licence").code == 0, "either spelling"


def test_a_pull_killed_between_its_renames_is_put_back_without_asking(owned):
    folder = pull("tiny", accept_license=True)
    os.replace(folder, folder.with_name(".tiny.old"))
    assert pull("tiny") == folder and open_folder(folder)


def typed(entry, text, *args):
    """`lm2 pull tiny` with a terminal for stdin and stderr, at which `text` is typed: exit code, stdout, what the terminal showed."""
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    keyboard, slave = pty.openpty()
    with command_line.spawn(["pull", "tiny", *args], ENTRY.format(pickle.dumps(entry)), stdin=slave, stderr=slave) as process:
        os.close(slave)
        os.write(keyboard, text)
        screen = b""
        while select.select([keyboard], [], [], 60)[0]:
            try:
                screen += os.read(keyboard, 1 << 16)
            except OSError:  # the other side is closed
                break
        out = process.stdout.read().decode()
        code = process.wait(60)
    os.close(keyboard)
    return code, out, screen.decode()


@pytest.mark.parametrize("text", [b"n\n", b"\n", b"\x04"])
def test_asked_on_a_terminal_and_not_accepted(owned, text):
    code, out, screen = typed(owned, text)
    assert code == 1 and out == "" and "Tiny Terms" in screen and OWN.url in screen and "do you accept it? [y/N]" in screen
    assert "lm2: the licence of tiny was not accepted: nothing was fetched" in screen and "Traceback" not in screen
    assert not home().exists()


def test_asked_on_a_terminal_and_accepted(owned):
    code, out, screen = typed(owned, b"y\n")
    assert code == 0 and out == f"tiny is ready (from wheel): {home() / 'models' / 'tiny'}\n" and "[y/N]" in screen
    assert open_folder(home() / "models" / "tiny")


def test_a_licence_that_need_not_be_accepted_is_not_asked_for(entry):
    code, out, screen = typed(entry, b"n\n")
    assert code == 0 and "ready" in out and "[y/N]" not in screen and "licence MIT, https://example.org/mit" in screen


# The list


def test_list(owned, lm2):
    before = lm2("pull", "--list")
    rows = {line.split()[0]: line for line in before.out.splitlines()[1:]}
    assert set(rows) == set(catalog.CATALOG) and not home().exists() and before.err == ""
    assert "Apache-2.0" in rows["smollm2"] and "hub 269.1 MB, wheel 92.9 MB" in rows["smollm2"]
    assert "Gemma Terms of Use, to be accepted" in rows["gemma3-270m"] and "wheel 238.2 MB" in rows["gemma3-270m"]
    assert rows["tiny"].rstrip().endswith("no")
    pull("tiny", accept_license=True)
    after = {row["name"]: row for row in json.loads(lm2("pull", "--list", "--json").out)}
    folder, tiny = home() / "models" / "tiny", after["tiny"]
    assert tiny["path"] == str(folder) and tiny["source"] == "wheel" and tiny["bytes"] == sum(f.stat().st_size for f in folder.iterdir())
    assert tiny["license"] == {"name": "Tiny Terms", "url": "https://example.org/terms", "must_be_accepted": True}
    assert tiny["download_bytes"] == {"wheel": owned.wheels.size} and after["gemma3-270m"]["path"] is None
    assert "from wheel" in lm2("pull", "--list").out.split("\ntiny ")[1].splitlines()[0]
