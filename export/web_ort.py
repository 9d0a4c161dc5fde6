"""The files of onnxruntime-web that an exported page runs on: found in a node_modules folder, of the version that was tested. Knows names and bytes; fetches nothing."""

import json
import shutil
from pathlib import Path

from ..models.errors import ConvertError
from ..models.oserrors import shown

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
FILES = (  # of dist/: a module and what it loads, for a CPU and for WebGPU
    "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip


def find_package(given: Path | None) -> Path:
    """The folder of onnxruntime-web: `given`, else `node_modules/onnxruntime-web` of the working folder or one above it.

    Raises ConvertError where there is none, it is another version than VERSION, or files are missing, each with the npm line that remedies it.
    """
    remedy = f"npm install --ignore-scripts {PACKAGE}@{VERSION}"
    places = [given] if given is not None else [folder / "node_modules" / PACKAGE for folder in (Path.cwd(), *Path.cwd().parents)]
    found = next((place for place in places if (place / "package.json").is_file()), None)
    if found is None:
        where = f"{shown(given)} is not its folder" if given is not None else "there is no node_modules folder with it here or above"
        raise ConvertError(f"--web needs {PACKAGE}, and {where}: {remedy}, then give --ort-web node_modules/{PACKAGE}")
    try:
        package = json.loads((found / "package.json").read_text("utf-8"))
        name, version = package["name"], package["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConvertError(f"{shown(found / 'package.json')} cannot be read as a package: {remedy}") from None
    if (name, version) != (PACKAGE, VERSION):
        raise ConvertError(f"{shown(found)} is {name} {version}, the page was tested with {PACKAGE} {VERSION}: {remedy}")
    for file in FILES:
        if not (found / "dist" / file).is_file():
            raise ConvertError(f"{shown(found / 'dist' / file)} is missing: {remedy}")
    return found


def copy_package(package: Path, out: Path) -> int:
    """Copy FILES and package.json (it names the licence, MIT) of a found package into the new folder `out`; their bytes."""
    out.mkdir()
    for source in (*(package / "dist" / file for file in FILES), package / "package.json"):
        shutil.copyfile(source, out / source.name)
    return sum(file.stat().st_size for file in out.iterdir())
