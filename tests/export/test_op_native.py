"""The C sources under sanitizers, driven by a made-up ONNX Runtime (op_driver.c): no crash, nothing out of bounds, clear refusals."""

import shutil

import pytest
from op_kit import DRIVER, FLAGS, OPS, compile_and_run, compiler

from lm2.export.ops.build import C_SOURCES

SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NOTHING = "int main(void) { return 0; }\n"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    import subprocess

    folder = tmp_path_factory.mktemp("sanitize")
    (folder / "nothing.c").write_text(NOTHING)
    probe = subprocess.run([compiler(), *FLAGS, *SANITIZE, "nothing.c", "-o", "nothing"], cwd=folder, capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip("this compiler has no -fsanitize=address,undefined")
    return SANITIZE


def altered(folder, old, new):
    """A copy of the sources with one change; fails when there is nothing to change."""
    copy = folder / "ops"
    shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (copy / "gated_memory_update.c").read_text(encoding="utf-8")
    assert old in text
    (copy / "gated_memory_update.c").write_text(text.replace(old, new), encoding="utf-8")
    return copy


def drive(folder, flags, *arguments, ops=OPS):
    sources = [ops / name for name in C_SOURCES if name != "gated_memory_update.c"]  # the driver includes that one
    return compile_and_run(folder, [*sources, DRIVER], flags, arguments, ops)


@pytest.mark.slow
def test_fuzz_under_address_and_undefined_behaviour_sanitizers(tmp_path, sanitized):
    code, out, err = drive(tmp_path, sanitized, "fuzz", "1", "1500")
    assert (code, err) == (0, "")
    words = out.split()
    assert words[0] == "ok" and int(words[1]) > 800 and int(words[3]) > 200


@pytest.mark.slow
def test_fuzz_as_it_is_shipped(tmp_path):
    code, out, err = drive(tmp_path, ("-O3",), "fuzz", "2", "4000")
    assert (code, err) == (0, "") and out.startswith("ok ")


@pytest.mark.slow
def test_the_driver_sees_one_element_too_many(tmp_path, sanitized):
    """Negative control of the sanitizer run."""
    ops = altered(tmp_path, "for (; k < n; k++) out[k] = update", "for (; k < n + 1; k++) out[k] = update")
    code, _, err = drive(tmp_path, sanitized, "fuzz", "1", "200", ops=ops)
    assert code != 0 and "heap-buffer-overflow" in err


@pytest.mark.slow
def test_the_driver_sees_a_wrong_coefficient(tmp_path):
    """Negative control of the comparison: one coefficient off by one part in 2700."""
    ops = altered(tmp_path, "0x1.555a70p-3f", "0x1.557a70p-3f")
    code, _, err = drive(tmp_path, ("-O3",), "fuzz", "2", "2000", ops=ops)
    assert code == 1 and "FAILED: value" in err


@pytest.mark.slow
def test_the_driver_sees_a_round_that_is_too_short(tmp_path):
    """Negative control of the comparison: the loop that asks ahead for memory leaves out the last of its 64 numbers."""
    ops = altered(tmp_path, "j < k + LINES; j++", "j < k + LINES - 1; j++")
    code, _, err = drive(tmp_path, ("-O3",), "fuzz", "2", "4000", ops=ops)
    assert code == 1 and "FAILED: value" in err


@pytest.mark.slow
def test_the_driver_sees_a_last_element_that_is_not_written(tmp_path):
    """Negative control of the poisoned outputs: a level that leaves out an element would find there what the level
    before it wrote, which is right."""
    right = "ATTRIBUTE static void floats_##NAME(FLOAT_ARGUMENTS) { floats(i, f, z, old, out, n, FUSED); }"
    ops = altered(tmp_path, right, right.replace("out, n, FUSED", "out, n - (n > 1 && FUSED != BASE_FUSED), FUSED"))
    code, _, err = drive(tmp_path, ("-O3",), "fuzz", "2", "2000", ops=ops)
    assert code == 1 and "FAILED: value" in err


def test_an_onnxruntime_without_the_api_version_is_told_so(tmp_path):
    code, out, err = drive(tmp_path, ("-O1",), "old")
    assert (code, err) == (0, "")
    assert out == (
        "ok 9 ai.lm2 operator library: this ONNX Runtime is 1.0.made-up and lacks API version 17; use ONNX Runtime 1.17 or newer, "
        "or run without the library\n"
    )


def test_one_that_knows_no_version_at_all_gets_a_line_on_stderr(tmp_path):
    code, out, err = drive(tmp_path, ("-O1",), "none")
    assert code == 0 and out.startswith("ok 0") and "lacks API version 17" in err and err.count("\n") == 1
