"""`lm2 export --web`: a folder that any web server can serve, with a model, the page and JavaScript that run it, and onnxruntime-web. Needs onnx, not torch.

Knows the folder and web.json; the graph is export.py's, the texts web_text.py's, the code in browser/ JavaScript's. The folder asks no other server for
anything, and appears whole or not at all.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx

from ..models.atomic import check_new_folder, folder_name, new_folder
from ..models.checkpoints.progress import Report, silent
from ..models.config import LM2Config, read_json
from ..models.errors import ConvertError
from ..models.exported import MODEL, file_digest
from ..models.generation import read_ends, read_settings
from ..models.home import shipped_model
from ..models.layout import GENERATION, TOKENIZER, open_folder
from ..models.recall import ENCODER_FILES, RECORD, TENSORS
from ..models.text.dialogue import PlainTemplate
from ..models.text.template import ChatTemplate
from ..models.text.tokenizer import Tokenizer
from .export import INLINE_MAX, _version, estimated_bytes, export_model
from .options import Options
from .web_ort import VERSION, copy_package, find_package
from .web_text import tokens_block, wording_block

FORMAT = 1  # of web.json
WEB = "web.json"
BROWSER = Path(__file__).parent / "browser"
OPTIONS = Options(plain=True, opset=23, tables=True)  # what onnxruntime-web runs fastest, and without warnings
WINDOW = 2048
WITH = ("lm2-tiny", "lm2-babi")  # models of a few megabytes, in every folder
TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def export_web(src: Path, dst: Path, ort_web: Path | None = None, report: Report = silent) -> dict[str, Any]:
    """Write model folder `src`, those of WITH, the page, the module and onnxruntime-web (from `ort_web`, see `find_package`) into the new folder `dst`.

    Returns the summary that `lm2 export --json` prints. Raises as `export_model` does, and ConvertError for a model that a browser cannot run: cell
    released, no tokenizer, a chat template that is more than texts around a message.
    """
    package = find_package(ort_web)
    check_new_folder(dst)
    sources = [src, *(found for name in WITH if (found := shipped_model(name)) is not None and found.resolve() != src.resolve())]
    for source in sources:
        check_runs(source)
    summary: dict[str, Any] = {}
    with new_folder(dst) as out:
        shutil.copytree(BROWSER, out, dirs_exist_ok=True)
        size = copy_package(package, out / "ort")
        models: list[dict[str, Any]] = []
        for source in sources:
            name = open_folder(source).config.name or folder_name(source)
            folder = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
            if folder in (m["folder"] for m in models) or folder.strip(".") == "":
                raise ConvertError(f"a model called {name} is in the folder already, or cannot be a folder's name: give {source} another name in its config.json")
            made = export_model(source, out / "models" / folder, OPTIONS, report)
            web = write_web(source, out / "models" / folder)
            models.append({"name": name, "folder": folder, "bytes": sum(f["bytes"] for f in web["files"].values())})
            summary = summary or made
        (out / "models.json").write_text(json.dumps(models, indent=2), encoding="utf-8")
        (out / "package.json").write_text(json.dumps(package_json(), indent=2), encoding="utf-8")
    return summary | {"path": str(dst), "web": {"models": models, "onnxruntime_web": VERSION, "onnxruntime_web_bytes": size}}


def check_runs(source: Path) -> None:
    """Raise ConvertError for a model folder that a browser cannot run, before anything is written."""
    config = open_folder(source).config
    if config.memory.cell != "gated":
        raise ConvertError(f"{source}: cell {config.memory.cell} does not run in the browser, only gated does: export it without --web")
    if config.memory.banks and config.memory.init != "zeros":
        raise ConvertError(f"{source}: a memory that begins as {config.memory.init!r} does not run in the browser, only zeros does: export it without --web")
    if (size := estimated_bytes(config, OPTIONS)) > INLINE_MAX:
        raise ConvertError(f"{source} has {size / 1e9:.1f} GB in float32, more than a browser opens ({INLINE_MAX / 1e9:.1f} GB): export it without --web")
    if not (source / TOKENIZER).is_file():
        raise ConvertError(f"{source} has no {TOKENIZER}, and the page has to read and write text: copy the one the model was trained with into the folder")


def write_web(source: Path, out: Path) -> dict[str, Any]:
    """Write web.json of model folder `source` into its export `out`, and take out what a browser does not read; returns it."""
    folder = open_folder(source)
    config, tokenizer = folder.config, Tokenizer.load(source)
    template = ChatTemplate.load(source, tokenizer) or PlainTemplate(tokenizer.begin)
    settings = read_json(source / GENERATION) if (source / GENERATION).is_file() else {}
    ends = frozenset(config.eos_token_id) | read_ends(settings, config.vocab_size) | tokenizer.ends()
    own = tokenizer.named.names.get("eos_token")
    end_of_turn = own or (tokenizer.token(min(ends)) if ends else "")
    name = config.name or folder_name(source)
    for file in (RECORD, TENSORS, *ENCODER_FILES):
        (out / file).unlink(missing_ok=True)
    files = [file for file in (MODEL, TOKENIZER) if (out / file).is_file()]
    graph = onnx.load(out / MODEL, load_external_data=False).graph
    memory = config.memory
    web = {
        "format": FORMAT,
        "name": name,
        "fingerprint": folder.fingerprint,
        "tokenizer": tokenizer.sha256,
        "vocabulary": config.vocab_size,
        "positions": config.max_position_embeddings,
        "window": window_of(config),
        "eps": config.rms_norm_eps,
        "memory": {"banks": memory.banks, "memories": memory.memories, "slots": memory.slots, "chunk": memory.chunk, "width": config.hidden_size},
        "ends": sorted(ends),
        "sampling": read_settings(settings),
        "text": tokens_block(tokenizer),
        "wording": wording_block(template, end_of_turn, name),
        "inputs": {value.name: {"type": TYPES[value.type.tensor_type.elem_type], "dims": dims_of(value)} for value in graph.input},
        "files": {file: {"bytes": (out / file).stat().st_size, "sha256": file_digest(out / file)} for file in files},
    }
    (out / WEB).write_text(json.dumps(web, indent=1), encoding="utf-8")
    return web


def window_of(config: LM2Config) -> int:
    """Tokens that a session keeps word for word by default: what the config says; for a trained memory its chunk."""
    if config.memory.window is not None:
        return config.memory.window
    return config.memory.chunk if config.memory.trained else min(WINDOW, config.max_position_embeddings)


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """The axes of an input: a number, or a name where whoever runs the graph chooses."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def package_json() -> dict[str, Any]:
    """What npm wants to know of the folder: `import { load, Session } from 'lm2-web'`."""
    return {
        "name": "lm2-web",
        "version": _version(),
        "description": "LM2 memory models in the browser, with onnxruntime-web.",
        "license": "Apache-2.0",
        "type": "module",
        "exports": {".": "./lm2/index.js", "./*": "./lm2/*"},
        "peerDependencies": {"onnxruntime-web": VERSION},
    }
