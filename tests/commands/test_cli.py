"""The command itself: fast, lazy, one-line errors, exit codes, and backends that are not there."""

import importlib.util
import json
import resource

import pytest
from command_line import shell

from lm2 import __version__
from lm2.cli import COMMANDS

HEAVY = ("torch", "mlx", "onnxruntime", "numpy", "transformers", "tokenizers", "jinja2", "rich", "gguf", "huggingface_hub")
REPORT = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr))"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["chat", "--help"], ["generate", "--help"], ["info", "-h"]])
def test_help_is_fast_and_imports_nothing_heavy(args):
    """CPU seconds of the whole process, so that a busy machine does not matter; best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = shell(args, before=REPORT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.code == 0 and result.err.strip() == "[]", result
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    print(f"lm2 {' '.join(args)}: {min(seconds):.3f} s")
    assert min(seconds) < 0.3


def test_the_report_of_modules_can_fail():
    """Negative control of the test above."""
    assert "'numpy'" in shell(["--version"], before=REPORT + "\nimport numpy").err


def test_help_and_version(lm2):
    result = lm2("--help")
    assert result.code == 0 and all(name in result.out for name in COMMANDS) and not result.err
    assert lm2("--version") == (0, f"lm2, version {__version__}\n", "")
    for name in COMMANDS:
        result = lm2(name, "--help")
        assert result.code == 0 and "Usage: lm2 " + name in result.out and not result.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["Usage: lm2"]),
        (["nope"], ["No such command 'nope'"]),
        (["--nope"], ["No such option"]),
        (["chat", "--nope"], ["No such option"]),
        (["generate"], ["Missing argument 'MODEL'"]),
        (["generate", "m"], ["give the prompt once"]),
        (["generate", "m", "-p", "x", "-"], ["give the prompt once"]),
        (["generate", "m", "-p", "x", "--prompt-file", "f"], ["give the prompt once"]),
        (["generate", "m", "-p", "x", "--system", "s"], ["--system needs --chat"]),
        (["generate", "m", "-p", "x", "--max-tokens", "0"], ["--max-tokens"]),
        (["generate", "m", "-p", "x", "--seed", "-1"], ["--seed"]),
        (["generate", "m", "-p", "x", "--dtype", "float8"], ["--dtype", "bfloat16"]),
        (["generate", "m", "-p", "x", "--backend", "jax"], ["--backend", "torch"]),
        (["chat", "--temp", "warm"], ["--temp"]),
        (["chat", "--session", "/"], ["--session", "directory"]),
        (["info"], ["Missing argument"]),
    ],
)
def test_wrong_command_lines(lm2, args, words):
    result = lm2(*args)
    assert result.code == 2 and not result.out and "Usage: lm2" in result.err and "Traceback" not in result.err
    assert all(word in result.err for word in words), result.err


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--temp", "-1", "temperature -1.0"),
        ("--temp", "nan", "temperature nan"),
        ("--top-p", "1.5", "top_p 1.5"),
        ("--min-p", "-0.1", "min_p -0.1"),
        ("--top-k", "-5", "top_k -5"),
        ("--repetition-penalty", "0", "repetition_penalty 0.0"),
        ("--stop", "", "stop string ''"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(lm2, option, value, word):
    for args in (("generate", "no-such-model", "-p", "x"), ("chat", "no-such-model")):
        lm2(*args, option, value).fails(word, "must be")


def test_debug_shows_the_traceback(lm2, monkeypatch):
    from lm2.models.errors import ModelFileError

    lm2("info", "no-such-model").fails("no-such-model")
    with pytest.raises(ModelFileError, match="no-such-model"):
        lm2("--debug", "info", "no-such-model")
    with pytest.raises(ModelFileError):
        lm2("info", "no-such-model", "--debug")
    result = shell(["info", "no-such-model"], env={"LM2_DEBUG": "1"})
    assert result.code == 1 and "Traceback" in result.err and "ModelFileError" in result.err
    result = shell(["info", "no-such-model"], env={"LM2_DEBUG": "0"})
    result.fails("no-such-model")


def test_an_unexpected_error_is_one_line_too(lm2, tiny, monkeypatch):
    from lm2.runtime.session.wording import Wording

    def broken(*args, **options):
        raise ZeroDivisionError("over\nzero")

    monkeypatch.setattr(Wording, "turn", broken)
    result = lm2("generate", tiny, "-p", "x", "--chat", "--temp", "0")
    assert result.code == 1 and result.err.splitlines() == ["lm2: unexpected ZeroDivisionError: over zero (run again with --debug and report it)"]


# Backends that are not there


def without(monkeypatch, *names):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in names else real(name, *a))


@pytest.mark.parametrize(("backend", "module"), [("torch", "torch"), ("mlx", "mlx")])
def test_missing_extra(lm2, tiny, monkeypatch, backend, module):
    without(monkeypatch, module)
    for args in (("generate", tiny, "-p", "x"), ("chat", tiny)):
        lm2(*args, "--backend", backend).fails(f"backend {backend} is not installed", f"pip install 'lm2[{backend}]'")


def test_auto_with_nothing_installed(lm2, tiny, monkeypatch):
    without(monkeypatch, "torch", "mlx", "onnxruntime")
    lm2("generate", tiny, "-p", "x").fails("no backend is installed", "pip install 'lm2[")


def test_missing_module_in_a_process_of_its_own(tiny):
    """As on a machine without torch: the finder does not find it, and nothing on the way has imported it."""
    hide = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'mlx', 'onnxruntime'): raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())"
    )
    shell(["generate", tiny, "-p", "x", "--backend", "torch"], before=hide).fails("pip install 'lm2[torch]'")
    assert shell(["info", tiny, "--json"], before=hide).code == 0


def test_backend_that_is_installed_and_broken(lm2, tiny, monkeypatch):
    import importlib

    real = importlib.import_module

    def broken(name, package=None):
        if name.endswith("torch_backend"):
            raise ImportError("libfoo.so: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    lm2("generate", tiny, "-p", "x", "--backend", "torch").fails("backend torch", "libfoo.so", "pip install")


def test_devices_and_dtypes(lm2, tiny):
    import torch

    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:0", "gpu", "cuda:7"):
            lm2("generate", tiny, "-p", "x", "--backend", "torch", "--device", device).fails("is not there", "--device cpu")
    for device in ("tpu", "mps", "cuda:x", "", "cpu:"):
        lm2("generate", tiny, "-p", "x", "--backend", "torch", "--device", device).fails(f"device {device!r} must be")
    for dtype in ("bfloat16", "float16", "float32"):
        result = lm2("generate", tiny, "-p", "x", "--backend", "torch", "--dtype", dtype, "--max-tokens", 2, "--json", "--threads", 1)
        assert result.code == 0 and json.loads(result.out)["dtype"] == dtype
