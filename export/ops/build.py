"""Builds the op's library with the C compiler that is there, once, into the user's cache; a wheel may carry one. Knows compilers and files; no ONNX, no
model.

A library is keyed by its sources, the flags and the platform, so a new version of this package builds a new one and an old one is never taken
for it. It picks its instructions when it runs, so one cache may serve machines with different processors of one kind. It appears under its name
only when it is whole and, in the cache, when it has been loaded once.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ...models.atomic import check_file, fsync_folder, write_error
from ...models.checkpoints.progress import Event, Report, silent
from ...models.errors import LM2Error, WriteError
from ...models.home import home

QLINEAR_SOURCES = ("qlinear.c", "qlinear_plain.c", "qlinear_x86.c", "qlinear_x86_row.c", "qlinear_x86_rows.c", "qlinear_x86_amx.c", "qlinear_neon.c")
ATTENTION_SOURCES = ("chunk_attention.c", "chunk_attention_core.c", "chunk_attention_plain.c", "chunk_attention_x86.c")
C_SOURCES = ("library.c", "huge_pages.c", "gated_memory_update.c", "block_sums.c", *QLINEAR_SOURCES, *ATTENTION_SOURCES)
CUDA_SOURCES = ("gated_memory_update.cu",)
HEADERS = ("ort_abi.h", "huge_pages.h", "gated_memory_update.h", "block_sums.h", "qlinear.h", "qlinear_x86.h", "chunk_attention.h", "op_inputs.h")
C_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
CUDA_FLAGS = ("-O3", "-DLM2_OPS_CUDA", "-arch=all-major", "--cudart=static")
COMPILERS = ("cc", "gcc", "clang")
FOLDER = Path(__file__).parent
ENTRY = "RegisterCustomOps"
SWITCH = "LM2_OPS"
SLOWER = "no native operators for ONNX Runtime: models run by the bodies in their files, with the same numbers but slower"
TIMEOUT_S = 600


class BuildError(LM2Error):
    """The library cannot be built: no compiler, or the compiler failed."""


def library(cuda: bool = False) -> Path:
    """The library in the user's cache, built now if it is not there (a few seconds; with CUDA about a minute).

    Give it to ONNX Runtime's `SessionOptions.register_custom_ops_library`. With `cuda` it also holds the kernels for CUDAExecutionProvider
    and needs nvcc. Raises BuildError and WriteError.
    """
    target = _cached(cuda)
    if not target.is_file():
        _run(target, cuda, must_load=True)
    return target


def built(cuda: bool = False) -> Path | None:
    """The same library if it is in the cache already, or the one that came with the package where it loads, else None. Compiles nothing and needs no
    compiler."""
    target = _cached(cuda)
    if target.is_file():
        return target
    return None if cuda else shipped()


def ready(report: Report = silent) -> Path | None:
    """The library for the CPU: as `built`, else built now, once, with the C compiler that is there. `report` hears of that, or in one line why there is
    none; where nobody hears of it, or with LM2_OPS=off in the environment, nothing is built."""
    found = built()
    if found is not None or report is silent or os.environ.get(SWITCH, "") == "off":
        return found
    try:
        find_compiler()
        report(Event("building the operators for ONNX Runtime, once", note=True))
        return library()
    except (BuildError, WriteError) as error:
        report(Event(f"{SLOWER} ({error})", note=True))
        return None


def shipped() -> Path | None:
    """The library for the CPU that came with the package (a wheel of this platform, setup.py), None where there is none or it does not load here."""
    path = FOLDER / shipped_name()
    try:
        return path if path.is_file() and getattr(ctypes.CDLL(str(path)), ENTRY) else None
    except (OSError, AttributeError):
        return None


def shipped_name() -> str:
    """What the library of these sources for this platform is called in the package."""
    return f"lm2_ops-{_platform(False)}-{_digest(False)}{suffix()}"


def build(out: Path, cuda: bool = False) -> Path:
    """Build into the file `out`, replacing it, for another folder, image or machine: set CC to a cross compiler. Raises as `library` does."""
    _run(out, cuda, must_load=False)
    return out


def find_compiler() -> list[str]:
    """The C compiler as the start of a command line: $CC, else cc, gcc or clang. Raises BuildError."""
    named = os.environ.get("CC", "").strip()
    if named:
        words = shlex.split(named)
        if shutil.which(words[0]) is None:
            raise BuildError(f"the C compiler {words[0]} named by CC is not on PATH: set CC to one that is, or unset it")
        return words
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(
        f"no C compiler found (tried $CC, {', '.join(COMPILERS)}): install one (Debian: apt install gcc; macOS: xcode-select --install; "
        "Windows: LLVM or MinGW), or run without the library: exported models run without it"
    )


def find_nvcc() -> str:
    """The path of nvcc: on PATH, else under CUDA_HOME, CUDA_PATH or /usr/local/cuda. Raises BuildError."""
    folders = [Path(root) / "bin" for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if root]
    found = shutil.which("nvcc") or next((path for folder in folders if (path := shutil.which("nvcc", path=str(folder)))), None)
    if found is None:
        raise BuildError(
            "no nvcc found (tried PATH, CUDA_HOME, CUDA_PATH): install the CUDA toolkit, or leave --cuda out for the CPU library"
        )
    return found


def _host_flags() -> list[str]:
    return [*C_FLAGS, *([] if sys.platform == "win32" else ["-fPIC", "-fvisibility=hidden"])]


def _words(cuda: bool) -> list[str]:
    """The compiler with its flags; the sources and the product are still to come."""
    if not cuda:
        return [*find_compiler(), *_host_flags(), "-shared"]
    host = [] if sys.platform == "win32" else [f"-Xcompiler={flag}" for flag in _host_flags() if not flag.startswith("-std")]
    return [find_nvcc(), *CUDA_FLAGS, *host, "-shared"]


def _sources(cuda: bool) -> tuple[str, ...]:
    return (*C_SOURCES, *CUDA_SOURCES) if cuda else C_SOURCES


def _cached(cuda: bool) -> Path:
    """Where the library of these sources for this platform belongs."""
    return home() / "ops" / f"lm2_ops-{_platform(cuda)}-{_digest(cuda, platform.libc_ver())}{suffix()}"


def _platform(cuda: bool) -> str:
    return f"{'cuda' if cuda else 'cpu'}-{sys.platform}-{platform.machine().lower()}"


def _digest(cuda: bool, *more: object) -> str:
    """Of sources, flags and what else decides what is built."""
    digest = hashlib.sha256(repr((_host_flags(), CUDA_FLAGS if cuda else (), *more)).encode())
    for name in (*_sources(cuda), *HEADERS):
        try:
            digest.update((FOLDER / name).read_bytes())
        except OSError as error:
            raise BuildError(f"{FOLDER / name}: {error.strerror}: the installation of lm2 is incomplete; install it again") from error
    return digest.hexdigest()[:16]


def _run(target: Path, cuda: bool, must_load: bool) -> None:
    """Compile next to `target`, then move into place: two builders at once each make their own, and the last one stays."""
    target, words = check_file(target), _words(cuda)
    try:
        if must_load:
            target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".lm2-ops-", dir=target.absolute().parent) as scratch:
            product = Path(scratch) / target.name
            _compile(words, _sources(cuda), product)
            if must_load:
                _load(words[0], product)
            with open(product, "rb+") as f:
                os.fsync(f.fileno())
            os.replace(product, target)
    except OSError as error:
        if isinstance(error, LM2Error):
            raise
        raise write_error(target, error, "nothing was written") from error
    fsync_folder(target.absolute().parent)


def _compile(words: list[str], sources: tuple[str, ...], product: Path) -> None:
    command = [*words, *(str(FOLDER / name) for name in sources), "-o", str(product)]
    try:
        # The compiler's temporary files stand beside the product: one disk to be full, and nothing stays elsewhere.
        room = os.environ | {name: str(product.parent) for name in ("TMPDIR", "TEMP", "TMP")}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, cwd=product.parent, env=room)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{words[0]} did not finish the custom op in {TIMEOUT_S} s: try again, or set CC to another C compiler") from None
    except OSError as error:
        raise BuildError(f"{words[0]} could not be started: {error.strerror}: set CC to another C compiler") from error
    if done.returncode != 0 or not product.is_file():
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        for number in (errno.ENOSPC, errno.EDQUOT):
            if any(os.strerror(number) in line for line in lines):
                raise OSError(number, os.strerror(number))
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else f"exit code {done.returncode}")
        raise BuildError(
            f"{words[0]} could not build the custom op: {reason[:300]}: set CC to another C compiler (NVCC_CCBIN for nvcc), or run without the library"
        )


def _load(compiler: str, product: Path) -> None:
    """A library for another processor or with missing symbols must not enter the cache. Tried in a process of its own: this one stays clean."""
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])", str(product), ENTRY],
        capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BuildError(f"the library that {compiler} made does not load here: {reason[:300]}: set CC to a compiler for this machine")


def suffix() -> str:
    """What a shared library's name ends with here: .so, .dylib or .dll."""
    return {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
