"""Which environment the tests may preload an OpenBLAS with: printed for env(1) on stdout, why not on stderr.

    env $(python tests/blas.py /usr/lib/.../libblas.so.3) python -m pytest

An old OpenBLAS computes wrongly, or crashes, on processors newer than itself, unless told to take older kernels (OPENBLAS_CORETYPE). So it is tried in
a process of its own, as it is and with those, and not preloaded where neither is right. Knows libraries; what is multiplied is lm2_mlx/blas.py's.
"""

import os
import subprocess
import sys

TRIES = ({}, {"OPENBLAS_CORETYPE": "Haswell"})
CHECK = "from lm2.lm2_mlx.blas import wrong_product; print(wrong_product())"


def fault(variables, timeout=120):
    """What is wrong with MLX's products in a process with these variables; empty if nothing."""
    try:
        done = subprocess.run([sys.executable, "-c", CHECK], env=os.environ | variables, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout} s"
    if "cannot be preloaded" in done.stderr:
        return "it cannot be loaded"
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    return done.stdout.strip() if not done.returncode else done.stderr.strip().splitlines()[-1]


def choose(library):
    """(variables to run the tests with, a line to print or an empty one). No variables: the library is not to be preloaded."""
    before = os.environ.get("LD_PRELOAD", "")
    faults = []
    for extra in TRIES:
        variables = {"LD_PRELOAD": f"{library}:{before}".rstrip(":"), **extra}
        faults.append(fault(variables))
        if not faults[-1]:
            with_ = ", ".join(f"{name}={value}" for name, value in extra.items())
            return variables, f"{library} computes wrongly on this processor ({faults[0]}); with {with_} it does not" if extra else ""
    return (
        {},
        f"{library} is not preloaded: it is no use on this processor ({faults[0]}). MLX's tests run with the wheel's own BLAS, slower and fewer",
    )


def main(arguments):
    for library in arguments:
        variables, line = choose(library)
        if line:
            print(line, file=sys.stderr)
        print(*(f"{name}={value}" for name, value in variables.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
