"""Building the library: the cache, two builders at once, compilers that are missing, fail, hang or build for another machine, the command."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from op_kit import OPS, check, compiler, feed, model, rows, session

from lm2.export.ops import build as building
from lm2.export.ops.build import BuildError, build, built, find_compiler, library
from lm2.models.errors import LM2Error, WriteError
from lm2.runtime.commands.build_ops import command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the compilers of these tests are shell scripts")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LM2_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "home" / "ops"


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def no_rest(folder):
    """Nothing but the library itself is left behind."""
    return [p.name for p in folder.iterdir() if not p.name.startswith("lm2_ops-cpu-")] == []


@pytest.mark.slow
def test_it_is_built_once_and_found_again_without_a_compiler(cache, monkeypatch):
    compiler()
    assert built() is None
    path = library()
    assert path.parent == cache and built() == path and no_rest(cache)
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "/nowhere")
    assert library() == path and built() == path and path.stat().st_mtime_ns == before
    import numpy as np

    arrays = rows(np.random.default_rng(0), (2, 9), "float32")
    check(session(model(), path).run(None, feed(arrays))[0], arrays)


def test_another_source_is_another_library(cache, monkeypatch, tmp_path):
    import shutil

    copy = tmp_path / "ops"
    shutil.copytree(OPS, copy)
    first = building._cached(False)
    monkeypatch.setattr(building, "FOLDER", copy)
    assert building._cached(False) == first
    for name in ("library.c", "ort_abi.h"):
        with open(copy / name, "a", encoding="utf-8") as f:
            f.write("/* changed */\n")
        assert building._cached(False) not in (first, building._cached(True))
        first = building._cached(False)
    (copy / "library.c").unlink()
    with pytest.raises(BuildError, match=r"library\.c: No such file.*install it again"):
        library()


@pytest.mark.slow
def test_builders_at_once_leave_one_whole_library(cache):
    compiler()
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: library(), range(4)))
    assert len(paths) == 1 and no_rest(cache)
    session(model(), paths.pop())


@pytest.mark.slow
def test_a_named_compiler_is_used_and_must_exist(monkeypatch, tmp_path):
    real = compiler()
    wrapper = script(tmp_path, "my cc", f'echo used > "{tmp_path}/used"; exec {real} "$@"')
    monkeypatch.setenv("CC", f"'{wrapper}' -DEXTRA")
    assert find_compiler() == [str(wrapper), "-DEXTRA"]
    library()
    assert (tmp_path / "used").exists()
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(BuildError, match="the C compiler no-such-cc named by CC is not on PATH"):
        build(tmp_path / "x.so")


def test_no_compiler_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match=r"no C compiler found \(tried \$CC, cc, gcc, clang\): install one .* run without it") as caught:
        library()
    assert "\n" not in str(caught.value) and isinstance(caught.value, LM2Error)


def test_no_nvcc_is_one_line_with_the_remedy(monkeypatch):
    compiler()
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(building.shutil, "which", lambda *_, **__: None)
    with pytest.raises(BuildError, match="no nvcc found .*install the CUDA toolkit, or leave --cuda out"):
        library(cuda=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('echo "x.c:1: error: no such thing" >&2; exit 1', "could not build the custom op: x.c:1: error: no such thing"),
        ("exit 3", "could not build the custom op: exit code 3"),
        ("exit 0", "could not build the custom op: exit code 0"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(cache, monkeypatch, tmp_path, text, said):
    monkeypatch.setenv("CC", str(script(tmp_path, "badcc", text)))
    with pytest.raises(BuildError, match=said):
        library()
    assert built() is None and no_rest(cache)


def test_a_compiler_that_hangs_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "TIMEOUT_S", 0.3)
    monkeypatch.setenv("CC", str(script(tmp_path, "slowcc", "exec sleep 20")))
    with pytest.raises(BuildError, match="did not finish the custom op in 0.3 s"):
        library()


def test_a_library_for_another_machine_does_not_enter_the_cache(cache, monkeypatch, tmp_path):
    """A cross compiler named by mistake; `build` to a file of one's own takes it."""
    text = 'while [ "$1" != -o ]; do shift; done; echo not a library > "$2"'
    monkeypatch.setenv("CC", str(script(tmp_path, "crosscc", text)))
    with pytest.raises(BuildError, match="does not load here: .*set CC to a compiler for this machine"):
        library()
    assert built() is None and no_rest(cache)
    assert build(tmp_path / "other.so").read_text() == "not a library\n"


def test_a_failed_build_leaves_the_old_file(monkeypatch, tmp_path):
    out = tmp_path / "ops.so"
    out.write_text("old")
    monkeypatch.setenv("CC", str(script(tmp_path, "badcc", "exit 1")))
    with pytest.raises(BuildError):
        build(out)
    assert out.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["badcc", "ops.so"]


def test_a_folder_that_is_not_there_is_a_write_error(tmp_path):
    compiler()
    with pytest.raises(WriteError, match="the folder does not exist: create it first"):
        build(tmp_path / "no" / "ops.so")


@pytest.mark.slow
def test_the_command_builds_and_says_how_to_use_it(cache, tmp_path):
    compiler()
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 0 and done.output.splitlines()[0] == str(built())
    assert f"register_custom_ops_library('{built()}')" in done.output
    out = tmp_path / "mine.so"
    done = CliRunner().invoke(command, ["--out", str(out), "--json"])
    facts = json.loads(done.output)
    assert facts == {"library": str(out), "bytes": out.stat().st_size, "op": "ai.lm2::GatedMemoryUpdate", "version": 1, "cuda": False}


def test_the_command_line_exit_code_and_line():
    env = {**os.environ, "PATH": "/nowhere"}
    words = [sys.executable, "-c", "from lm2.cli import main; main()", "build-ops"]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("lm2: no C compiler found") and done.stderr.count("\n") == 1


def test_the_sources_are_package_data():
    """What the build reads is what pyproject.toml puts into a wheel."""
    project = tomllib.loads((Path(OPS).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = project["package-data"]["lm2.export.ops"]
    assert {"lm2.export", "lm2.export.ops"} <= set(project["packages"])
    shipped = {p.name for pattern in patterns for p in OPS.glob(pattern)}
    assert {*building.C_SOURCES, *building.CUDA_SOURCES, *building.HEADERS} <= shipped
    assert shipped == {p.name for p in OPS.iterdir() if p.suffix in (".c", ".h", ".cu")}


@pytest.mark.slow
def test_what_came_with_the_package_is_found_where_it_loads(cache, monkeypatch, tmp_path):
    """Without a compiler and with an empty cache; one that is damaged or of other sources is nobody's."""
    import shutil

    compiler()
    copy = tmp_path / "ops"
    shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("lm2_ops*"))
    monkeypatch.setattr(building, "FOLDER", copy)
    assert building.shipped() is None and built() is None
    build(copy / building.shipped_name())
    monkeypatch.setenv("PATH", "/nowhere")
    assert built() == copy / building.shipped_name() and building.ready(lambda event: pytest.fail(event.stage)) == built()
    source = copy / "library.c"
    source.write_text(source.read_text() + "\n")
    assert built() is None, "of other sources"
    (copy / building.shipped_name()).write_bytes(b"no library")
    assert built() is None, "damaged"


def test_it_is_built_without_asking_where_somebody_hears_of_it(cache, monkeypatch):
    compiler()
    said = []
    monkeypatch.delenv("LM2_OPS", raising=False)
    assert building.ready() is None and not cache.exists(), "nobody hears of it"
    monkeypatch.setenv("LM2_OPS", "off")
    assert building.ready(said.append) is None and not said and not cache.exists()
    monkeypatch.delenv("LM2_OPS")
    path = building.ready(said.append)
    assert path == built() and [e.stage for e in said] == ["building the operators for ONNX Runtime, once"]
    assert building.ready(lambda event: pytest.fail(event.stage)) == path


def test_without_a_compiler_one_line_says_what_is_lost(cache, monkeypatch):
    said = []
    monkeypatch.delenv("LM2_OPS", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert building.ready(said.append) is None
    assert len(said) == 1 and "slower" in said[0].stage and "no C compiler found" in said[0].stage and "\n" not in said[0].stage


@pytest.mark.slow
def test_a_wheel_carries_the_library_and_is_one_for_its_platform(tmp_path):
    """With LM2_WHEEL=any it carries none and is one for every platform."""
    import shutil
    import sysconfig
    import zipfile

    compiler()
    # in a process of its own: setuptools refuses to be imported where distutils was, and other tests' libraries import that
    if subprocess.run([sys.executable, "-c", "import setuptools.command.bdist_wheel"], capture_output=True).returncode:
        pytest.skip("no setuptools that makes wheels")
    root = OPS.parents[1]
    if not (root / "setup.py").is_file():
        pytest.skip("not a checkout")
    left_out = shutil.ignore_patterns(".*", "build", "tests", "benchmarks", "docs", "*.egg-info", "weights", "__pycache__", "lm2_ops*")
    shutil.copytree(root, tmp_path / "src", ignore=left_out)
    for given, tag in (("", f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"), ("any", "py3-none-any")):
        folder = tmp_path / (given or "own")
        command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)]
        done = subprocess.run(command, cwd=tmp_path / "src", env=os.environ | {"LM2_WHEEL": given}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        (wheel,) = folder.iterdir()
        names = [n for n in zipfile.ZipFile(wheel).namelist() if "lm2_ops" in n]
        assert wheel.name.endswith(f"-{tag}.whl") and names == ([] if given else [f"lm2/export/ops/{building.shipped_name()}"])
