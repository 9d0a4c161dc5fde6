"""A BLAS that multiplies wrongly is found before anything is computed with it: by `make test`, by a suite it was preloaded for, and by the backend."""

import os
import subprocess
import sys
from pathlib import Path

import blas
import mlx_kit
import pytest
from op_kit import compiler

from lm2.models.errors import BackendError
from lm2.runtime.backends import mlx_backend

pytest.importorskip("mlx.core")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is preloaded elsewhere")
TESTS = Path(__file__).parent.parent
# A plain product, and what each library makes of it. cblas.h's numbers: 101 row by row, 111 not transposed.
SOURCE = """
#include <stdlib.h>
#define AT(x, order, turned, ld, i, j) x[((order) == 101) == ((turned) == 111) ? (long)(i) * (ld) + (j) : (long)(j) * (ld) + (i)]
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    const char *core = getenv("OPENBLAS_CORETYPE");
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float sum = 0, *to = &AT(c, order, 111, ldc, i, j);
            for (int l = 0; l < k; l++) sum += AT(a, order, ta, lda, i, l) * AT(b, order, tb, ldb, l, j);
            *to = alpha * sum + (beta == 0 ? 0 : beta * *to);
        }
    FAULT
}
"""
FAULTS = {
    "right": "(void)core;",
    "wrong": "if (m >= 33 && n >= 16) AT(c, order, 111, ldc, m - 1, n - 1) += 1; (void)core;",
    "unlucky": "if (!core && k == 97) AT(c, order, 111, ldc, 0, 0) = 0.0f / 0.0f;",
    "crash": "(void)core; abort();",
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blas")
    for name, fault in FAULTS.items():
        (folder / f"{name}.c").write_text(SOURCE.replace("FAULT", fault))
        done = subprocess.run(
            [compiler(), "-O3", "-shared", "-fPIC", str(folder / f"{name}.c"), "-o", str(folder / f"lib{name}blas.so")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert not done.returncode, done.stderr
    return {name: folder / f"lib{name}blas.so" for name in FAULTS}


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(blas, "CHECK", blas.CHECK.replace("()", "(quick=True)"))


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("right", {}, ""),
        ("unlucky", {"OPENBLAS_CORETYPE": "Haswell"}, "x 97 by 97 x"),
        ("wrong", None, "a float32 product of"),
        ("crash", None, "killed by signal 6"),
    ],
)
def test_a_library_is_preloaded_only_if_it_multiplies_rightly(libraries, name, extra, words, capsys):
    variables, line = blas.choose(libraries[name])
    assert variables == ({} if extra is None else {"LD_PRELOAD": str(libraries[name]), **extra})
    assert (
        words in line
        and "\n" not in line
        and (str(libraries[name]) in line) == bool(words)
        and ("not preloaded" in line) == (extra is None)
    )


def test_a_library_that_cannot_be_loaded_is_not_taken(tmp_path):
    """The loader leaves out what it cannot read, and goes on: nothing would be computed wrongly, and nothing faster."""
    (tmp_path / "libblas.so").write_bytes(b"\x7fELF nothing")
    variables, line = blas.choose(tmp_path / "libblas.so")
    assert variables == {} and "it cannot be loaded" in line


def test_a_suite_that_runs_with_a_wrong_library_says_so(libraries):
    (line,) = [
        line
        for line in subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--co", str(TESTS / "models" / "test_scoring.py")],
            env=os.environ | {"LD_PRELOAD": str(libraries["wrong"])}, cwd=TESTS.parent, capture_output=True, text=True,
        ).stdout.splitlines()
        if "BLAS" in line
    ]  # fmt: skip
    assert "COMPUTES WRONGLY (a float32 product of" in line and str(libraries["wrong"]) in line


def test_the_backend_refuses_to_compute_with_one(libraries, tmp_path):
    path = mlx_kit.folder(tmp_path / "m", "gated")
    code = f"from pathlib import Path; from lm2.runtime.backends.mlx_backend import open_model; open_model(Path({str(path)!r}))"
    for name in ("right", "wrong"):
        env = os.environ | {"LD_PRELOAD": str(libraries[name])}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert bool(done.returncode) == (name == "wrong"), done.stderr
    assert "computes wrongly on this processor (a float32 product of" in done.stderr and "OPENBLAS_CORETYPE" in done.stderr


def test_where_none_is_preloaded_nothing_is_multiplied(tmp_path, monkeypatch):
    """The wheel's own BLAS is plain, and slow: it is not checked at every start."""
    path = mlx_kit.folder(tmp_path / "m", "gated")
    asked = []
    monkeypatch.setattr(mlx_backend, "wrong_product", lambda quick=False: asked.append(quick) or "a product")
    monkeypatch.setattr(mlx_backend, "preloaded", lambda: False)
    mlx_kit.mlx(path)
    monkeypatch.setattr(mlx_backend, "preloaded", lambda: True)
    with pytest.raises(BackendError, match="preloaded for MLX computes wrongly"):
        mlx_kit.mlx(path)
    assert asked == [True]
