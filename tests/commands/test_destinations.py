"""Where things are written to: links, mount points, `.`, devices, pipes, long names, full and read-only disks, a stdout that takes nothing."""

import errno
import os
import shutil
import socket
import stat
import sys

import pytest
from command_line import shell, spawn

from lm2.models import atomic
from lm2.models.atomic import check_file, check_new_folder, new_folder, write_file
from lm2.models.errors import WriteError
from lm2.models.layout import open_folder

FEW = ("--max-tokens", "3", "--seed", "1", "--threads", "1")
POSIX = pytest.mark.skipif(os.name != "posix", reason="uses links, pipes and devices")


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    import sources

    return sources.save_hf(sources.llama(layers=2), tmp_path_factory.mktemp("hf") / "tiny")


def convert(lm2, src, dst):
    return lm2("convert", src, dst, "--memory-slots", "32")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# Folders


@POSIX
@pytest.mark.parametrize(
    "there", ["an empty folder", "a link to an empty folder", "a dangling link", "a trailing slash", ".", "lost+found"]
)
def test_destinations_that_work(lm2, src, tiny, tmp_path, monkeypatch, there):
    """For a conversion and for an export; what is there already stays the same folder (it may be a mount point, or another's working folder)."""
    for command in (("convert", src, "--memory-slots", "32"), ("export", tiny)):
        place = tmp_path / command[0]
        dst = real = place / "dst"
        place.mkdir()
        if there in ("an empty folder", "lost+found"):
            dst.mkdir()
        if there == "lost+found":
            (dst / there).mkdir()
        if "link" in there:
            real = place / "elsewhere" / "real"
            dst.symlink_to(real)
        if there == "a link to an empty folder":
            real.mkdir(parents=True)
        if there == ".":
            real = place / "here"
            real.mkdir()
            monkeypatch.chdir(real)
            dst = "."
        before = real.stat().st_ino if real.exists() else None
        result = lm2(command[0], command[1], f"{dst}/" if there == "a trailing slash" else dst, *command[2:])
        assert result.code == 0, result
        opened = open_folder(real, exported=True)
        assert before in (None, real.stat().st_ino) and not [n for n in names(real) if n.startswith(".")]
        if command[0] == "convert":
            assert opened.config.name == {".": "here"}.get(there, "dst")
        if "link" in there:
            assert dst.is_symlink()


@POSIX
@pytest.mark.parametrize(
    "there", ["a folder with something in it", "a link to one", "a file", "a link in a circle", "..", "below a file", "a long name"]
)
def test_destinations_that_are_refused_before_any_work(lm2, src, tiny, tmp_path, monkeypatch, there):
    from lm2.models.checkpoints import convert as conversion
    from lm2.runtime import loading

    def worked(*args, **kwargs):
        raise AssertionError("the work had begun")

    dst, full = tmp_path / "dst", tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    if there == "a folder with something in it":
        dst = full
    elif there == "a link to one":
        dst.symlink_to(full)
    elif there == "a link in a circle":
        dst.symlink_to(dst)
    elif there == "..":
        (full / "inside").mkdir()
        monkeypatch.chdir(full / "inside")
        dst = ".."
    elif there == "a long name":
        dst = tmp_path / ("n" * 256)
    else:
        dst.write_text("x")
        dst = dst / "below" if there == "below a file" else dst
    before = sorted(map(str, tmp_path.rglob("*")))
    monkeypatch.setattr(conversion, "open_source", worked)
    monkeypatch.setattr(loading, "find_model", worked)
    for args in (["convert", src, dst], ["export", tiny, dst], ["export", tiny, "--triton", dst], ["convert", src, dst, "--mlx"]):
        lm2(*args).fails(dst)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_folder_that_is_there_is_empty_again_after_an_error(tmp_path, monkeypatch):
    """Also when the error comes while files are moved up; what a killed run left does not matter."""
    dst = tmp_path / "dst"
    (dst / ".lm2.partial").mkdir(parents=True)
    (dst / ".lm2.partial" / "stray").write_text("x")
    with pytest.raises(ZeroDivisionError), new_folder(dst) as folder:
        (folder / "a").write_text("x")
        raise ZeroDivisionError
    assert names(dst) == []
    real = os.rename

    def rename(a, b):
        if os.fspath(b).endswith("config.json"):
            assert (dst / "weights").exists(), "the config comes last: without it the folder is no model"
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    with pytest.raises(WriteError, match="Input/output error"), monkeypatch.context() as patch, new_folder(dst) as folder:
        patch.setattr(atomic.os, "rename", rename)
        (folder / "config.json").write_text("x")
        (folder / "weights").write_text("x")
        (folder / "sub").mkdir()
    assert names(dst) == []
    with new_folder(dst) as folder:
        (folder / "a").write_text("x")
    assert names(dst) == ["a"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_made(lm2, src, tiny, tmp_path, monkeypatch, code):
    real = os.mkdir

    def refuse(path, *args, **kwargs):
        if str(tmp_path) in os.fspath(path):
            raise OSError(code, os.strerror(code), os.fspath(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", refuse)
    remedy = {errno.EROFS: "is read-only: choose another folder", errno.EACCES: "no permission", errno.ENOSPC: "the disk is full"}[code]
    convert(lm2, src, tmp_path / "a").fails(tmp_path / "a", os.strerror(code), remedy)
    lm2("export", tiny, tmp_path / "a").fails(tmp_path / "a", os.strerror(code), remedy)
    monkeypatch.setenv("LM2_HOME", str(tmp_path / "home"))
    lm2("pull", "smollm2").fails(tmp_path / "home", os.strerror(code), remedy)
    lm2("generate", tiny, "-p", "x", "--backend", "onnx").fails(tmp_path / "home", os.strerror(code), remedy, "LM2_HOME")
    lm2("eval", "lm2-tiny", "--task", "recall", "--samples", "1", "--out", tmp_path / "e").fails(tmp_path / "e", os.strerror(code), remedy)


@POSIX
def test_an_installed_model_behind_a_link_is_replaced_where_it_lies(tmp_path, monkeypatch):
    """Somebody moved a pulled model to a larger disk."""
    from lm2.models.checkpoints import pull

    target, moved = tmp_path / "models" / "m", tmp_path / "large" / "m"
    moved.mkdir(parents=True)
    (moved / "old").touch()
    target.parent.mkdir()
    target.symlink_to(moved)
    monkeypatch.setattr(pull, "convert", lambda src, dst, *args, **kwargs: (dst.mkdir(), (dst / "new").touch()))
    entry = next(iter(pull.catalog.CATALOG.values()))
    for _ in range(2):
        pull._install(tmp_path, target, entry, {}, pull.silent)
        assert target.is_symlink() and names(moved) == ["new"] and names(tmp_path / "large") == ["m"]


@POSIX
def test_a_mount_point_cannot_be_pulled_over(lm2, tmp_path, monkeypatch):
    from lm2.models.checkpoints import pull

    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    monkeypatch.setattr(pull.os.path, "ismount", lambda path: True)
    note, line = lm2("pull", "smollm2").err.splitlines()
    assert "fetching it again" in note and line.startswith("lm2: ") and "smollm2 is a mount point" in line and "set LM2_HOME" in line


# Files


@pytest.fixture
def odd(tmp_path):
    """Things that are no files: name -> path. The device is a terminal's: where it lies no test can replace it."""
    found = {"a device": tmp_path / "device", "a pipe": tmp_path / "pipe", "a socket": tmp_path / "socket", "a folder": tmp_path / "folder"}
    ends = os.openpty()
    found["a device"].symlink_to(os.ttyname(ends[1]))
    os.mkfifo(found["a pipe"])
    short = os.open(tmp_path, os.O_RDONLY)  # a socket's path has 100 bytes
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(f"/proc/self/fd/{short}/socket" if sys.platform == "linux" else str(found["a socket"]))
    os.close(short)
    found["a folder"].mkdir()
    yield found
    for fd in ends:
        os.close(fd)


def kinds(folder):
    return {p.name: stat.S_IFMT(p.lstat().st_mode) for p in folder.iterdir()}


@POSIX
def test_what_is_no_file_is_never_replaced(lm2, tiny, odd, tmp_path, monkeypatch):
    import importlib

    chat, inspect = (importlib.import_module(f"lm2.runtime.commands.{name}") for name in ("chat", "inspect"))
    before = kinds(tmp_path)
    for kind, path in odd.items():
        with pytest.raises(WriteError, match=f"it is {kind}"):
            write_file(path, lambda f: f.write(b"x"))
        link = tmp_path / f"link to {kind}.html"
        link.symlink_to(path)
        with monkeypatch.context() as patch:
            for command in (chat, inspect):
                patch.setattr(command, "open_model", lambda *args: pytest.fail("the work had begun"))
            if kind != "a folder":
                lm2("chat", tiny, "--new", "--session", path, *FEW, stdin="x\n").fails(path, f"it is {kind}", "choose the name of a file")
                lm2("build-ops", "--out", path).fails(path, f"it is {kind}")
                lm2("inspect", "lm2-tiny", "--out", link).fails(link, f"it is {kind}")
                for place in (path, link):
                    with pytest.raises(WriteError, match=f"it is {kind}, which stays as it is; choose the name of a new folder"):
                        check_new_folder(place)
        link.unlink()
    assert kinds(tmp_path) == before and stat.S_ISCHR(odd["a device"].stat().st_mode)


@POSIX
def test_links_to_files_are_followed(tmp_path):
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "new")
    for path in (link, dangling):
        write_file(path, lambda f: f.write(b"x"))
        assert path.is_symlink()
    assert real.read_text() == "x" and (tmp_path / "new").read_text() == "x"
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(WriteError, match="round in a circle"):
        write_file(link, lambda f: f.write(b"x"))
    with pytest.raises(WriteError, match="create it first"):
        write_file(tmp_path / "no" / "file", lambda f: f.write(b"x"))


@POSIX
def test_the_file_that_stdout_goes_to(tmp_path):
    """By its own name and by that of the stream: its text would go to a file that nobody sees any more."""
    out, stream = tmp_path / "out.txt", tmp_path / "stream"
    stream.symlink_to("/dev/stdout")
    for name in (out, stream):
        with open(out, "wb") as f:
            result = shell_to(f, ["build-ops", "--out", name])
        assert result == (1, f"lm2: cannot write {name}: this command's own output goes there; choose another file\n")
    assert out.read_bytes() == b""


def shell_to(f, args, stdin=b""):
    with spawn(args, stdout=f) as process:
        _, err = process.communicate(stdin, timeout=120)
    return process.returncode, err.decode()


def test_names_of_255_bytes(lm2, tiny, tmp_path):
    """A name that the file system takes is written; one that it does not is refused by what it is."""
    write_file(tmp_path / ("n" * 255), lambda f: f.write(b"x"))
    with new_folder(tmp_path / ("é" * 127)) as folder:
        (folder / "a").touch()
    assert len(names(tmp_path)) == 2
    with pytest.raises(WriteError, match="at most 255 bytes"):
        check_file(tmp_path / ("n" * 256))
    long = "n" * 300
    lm2("chat", tiny, "--session", tmp_path / long, *FEW, stdin="x\n").fails(long, "at most 255 bytes")
    lm2("build-ops", "--out", tmp_path / long).fails(long, "at most 255 bytes")
    lm2("generate", long, "-p", "x").fails(long, "at most 255 bytes")
    lm2("generate", tiny, "--prompt-file", tmp_path / long).fails(long, "too long")
    assert len(names(tmp_path)) == 2


def test_a_bad_path_does_not_end_the_chat(lm2, tiny, tmp_path):
    lines = [f"/{name} {path}" for name in ("save", "fork", "load", "read") for path in ("n" * 300, "~nobody-of-this-name/x", "a\0b")]
    result = lm2("chat", tiny, *FEW, stdin="".join(line + "\n" for line in lines) + "hello\n")
    said = [line for line in result.err.splitlines() if not line.startswith("seed")]
    assert result.code == 1 and len(said) == len(lines) and result.out.strip(), result
    assert not [line for line in said if "unexpected" in line or "Traceback" in line]


# Any refusal of the system


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "the file system is read-only"), (errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"),
        (errno.EIO, "the disk or the terminal failed"), (errno.EMFILE, "ulimit -n"), (errno.ELOOP, "in a circle"), (errno.EFBIG, "ulimit -f"),
    ],
)  # fmt: skip
def test_an_error_of_the_system_is_one_line_with_its_path(lm2, tiny, monkeypatch, code, remedy):
    from lm2.runtime import loading

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code), "/some/path")

    monkeypatch.setattr(loading, "open_folder", refuse)
    said = lm2("generate", tiny, "-p", "x").fails("/some/path", os.strerror(code), remedy)
    assert "report" not in said


@pytest.mark.parametrize("inside", ["", "lm2", "lm2/models"])
def test_what_is_refused_on_the_way_to_the_models_says_what_moves_them(lm2, tiny, monkeypatch, tmp_path, inside):
    from lm2.runtime import loading

    place = tmp_path / "cache"

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place / inside))

    monkeypatch.setenv("LM2_HOME", str(place / "lm2"))
    monkeypatch.setattr(loading, "open_folder", refuse)
    lm2("generate", tiny, "-p", "x").fails(place / inside, "read-only", "(LM2_HOME says where it lies)")


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@pytest.mark.slow
@needs_full
def test_a_stdout_that_is_full(tiny):
    for args, stdin in ((["info", tiny, "--json"], b""), (["chat", tiny, *FEW], b"one\ntwo\n"), (["--help"], b"")):
        with open("/dev/full", "wb") as full:
            code, err = shell_to(full, args, stdin)
        lines = [line for line in err.splitlines() if not line.startswith("seed ")]
        assert code == 1 and len(lines) == 1, (args, err)
        assert lines[0].startswith("lm2: cannot write to stdout: No space left on device: the disk is full")


@POSIX
def test_streams_that_are_closed(tiny):
    """Closed stdout: one line. Closed stderr: nobody to tell."""
    result = shell(["info", tiny], before="import os, sys; os.close(1); sys.stdout = None")
    result.fails("stdout is closed: send it to a file, or to /dev/null")
    result = shell(["info", tiny], before="import os, sys; os.close(2); sys.stderr = None")
    assert result.code == 0 and "tiny" in result.out and result.err == ""


@pytest.mark.skipif(os.name != "posix" or shutil.which("mount") is None, reason="mounts a file system")
def test_a_mounted_disk(lm2, src, tmp_path):
    """A real one of 300 KB, where this user may mount: an empty one is filled, a full or read-only one is named."""
    import subprocess

    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount")
    try:
        assert convert(lm2, src, place).code == 0 and "config.json" in names(place)
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run(["mount", "-o", "remount,size=100k", place], check=True)
        convert(lm2, src, place).fails(place, "No space left on device", "the disk is full")
        assert names(place) == []
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        convert(lm2, src, place).fails(place, "Read-only file system", "is read-only: choose another folder")
        convert(lm2, src, place / "m").fails(place / "m", "Read-only file system")
    finally:
        subprocess.run(["umount", place], check=True)
