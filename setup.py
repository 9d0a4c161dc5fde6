"""Wheels. Where a C compiler is there a wheel carries the operator library for ONNX Runtime and is one for this platform; with LM2_WHEEL=any in the
environment, or without a compiler, it carries none and runs anywhere. What the package is stands in pyproject.toml."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

BUILD = "from lm2.export.ops import build; build.build(build.FOLDER / build.shipped_name())"
LIBRARIES = "lm2/export/ops/lm2_ops-*"


class Build(build_py):
    """The package's files, then the library, built by the package's own command from the copies that go into the wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for left in Path(self.build_lib).glob(LIBRARIES):  # of a wheel that was made before
            left.unlink()
        if os.environ.get("LM2_WHEEL") == "any":
            return
        done = subprocess.run([sys.executable, "-c", BUILD], cwd=self.build_lib, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
        if done.returncode:
            print(f"no operator library in this wheel: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)


class Wheel(bdist_wheel):
    """One for every Python 3; for one platform if the library is in it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = True

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, anywhere = super().get_tag()
        if not any(Path(self.bdist_dir).glob(LIBRARIES)):
            return python, abi, anywhere
        return "py3", "none", sysconfig.get_platform().replace("-", "_").replace(".", "_")


setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel})
