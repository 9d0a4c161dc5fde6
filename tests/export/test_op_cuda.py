"""The CUDA kernels: that they compile with nvcc, and what of them can be run without a GPU. Skipped where there is no nvcc."""

import shutil
import subprocess

import numpy as np
import pytest
from op_kit import OPS, check, feed, model, rows, session

from lm2.export.ops.build import BuildError, build, find_nvcc, suffix

HOST = r"""
#include "gated_memory_update.cu"
#include <cstdio>
int main() {
    float v[4];
    while (fread(v, sizeof v, 1, stdin) == 1) {
        const float out = update(v[0], v[1], v[2], v[3]);
        fwrite(&out, sizeof out, 1, stdout);
    }
}
"""


@pytest.fixture(scope="module")
def nvcc():
    try:
        return find_nvcc()
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cuda_library(nvcc, tmp_path_factory):
    return build(tmp_path_factory.mktemp("cuda") / f"ops{suffix()}", cuda=True)


@pytest.mark.slow
def test_it_compiles_for_every_architecture_and_holds_both_types(cuda_library):
    text = cuda_library.read_bytes()
    for part in (b"CUDAExecutionProvider", b"lm2_gated_memory_update_cuda_f32", b"lm2_gated_memory_update_cuda_f16"):
        assert part in text
    lister = shutil.which("cuobjdump")
    if lister:
        found = subprocess.run([lister, "--list-elf", str(cuda_library)], capture_output=True, text=True, check=True).stdout
        assert {"sm_80", "sm_90"} <= {word.split(".")[-2] for word in found.split() if word.endswith(".cubin")}


@pytest.mark.slow
def test_on_a_machine_without_a_gpu_the_cuda_library_serves_the_cpu(cuda_library):
    for kind in ("float32", "float16"):
        arrays = rows(np.random.default_rng(1), (3, 70), kind)
        check(session(model(kind), cuda_library).run(None, feed(arrays))[0], arrays)


def test_the_equation_in_the_cuda_source_on_the_host(nvcc, tmp_path):
    """The device's own expf and tanhf are not tested here; the formula and its NaN and infinities are."""
    source = tmp_path / "host.cu"
    source.write_text(HOST, encoding="utf-8")
    subprocess.run([nvcc, f"-I{OPS}", str(source), "-o", str(tmp_path / "host")], check=True, capture_output=True, timeout=300)
    rng = np.random.default_rng(2)
    odd = rng.choice(np.array([np.nan, np.inf, -np.inf, 0, 3e38, -3e38, 200, -200], np.float32), (4, 2000))
    arrays = [np.where(rng.random(2000) < 0.3, o, a).astype(np.float32) for o, a in zip(odd, rows(rng, (2000,), np.float32), strict=True)]
    done = subprocess.run([str(tmp_path / "host")], input=np.stack(arrays, 1).tobytes(), capture_output=True, check=True, timeout=60)
    check(np.frombuffer(done.stdout, np.float32), arrays)


def test_both_types_are_read_16_bytes_at_a_time(nvcc, tmp_path):
    """Four inputs each, and four more loads for lengths and addresses that do not allow it."""
    done = subprocess.run(
        [nvcc, "-O3", "-arch=sm_90", "-ptx", str(OPS / "gated_memory_update.cu"), "-o", str(tmp_path / "op.ptx")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loads = [line.split()[0] for line in (tmp_path / "op.ptx").read_text().splitlines() if line.strip().startswith("ld.global")]
    assert sum(".v4." in load and load.endswith("32") for load in loads) == 8, loads
    assert sum(load.endswith((".f32", ".u16", ".b16")) and ".v" not in load for load in loads) == 8, loads
