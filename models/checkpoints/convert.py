"""`lm2 convert`: a checkpoint in, a model folder out, one tensor at a time.

Knows the order of events (open, plan, check, write, record); the formats are in hf.py, gguf_file.py and released.py,
the memory's first values in
warmstart.py. Peak memory is a few row blocks, not the model. The folder appears whole or not at all.
"""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ... import __version__
from ..atomic import check_new_folder, folder_name, new_folder, write_file
from ..config import LM2Config, MemoryConfig
from ..errors import ConfigError, ConvertError, PromptError
from ..generation import read_ends, read_settings
from ..layout import (
    CONFIG,
    FILE_BYTES_MAX,
    GENERATION,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    combine_fingerprint,
    stays_float32,
    tensor_shapes,
    write_fingerprint,
)
from ..oserrors import shown
from ..tensorfile import ITEM_BYTES, TensorWriter
from .adapter import TENSORS, Adapter, check_backbone, check_shapes, open_adapter
from .gguf_file import open_gguf
from .hf import open_huggingface
from .license import FILES, NAME, carry
from .progress import Counter, Report, silent
from .released import open_released
from .source import Source, SourceTensor, cast, same, sha256, to_json
from .warmstart import RECIPE, MemoryRequest, plan_memory, start_values

SOURCE = "source.json"
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
NO_MEMORY = MemoryConfig(slots=1, chunk=1, output_projection=True)
Plan = list[tuple[SourceTensor, str]]


def convert(
    src: Path,
    dst: Path,
    request: MemoryRequest = MemoryRequest(),
    *,
    dtype: str = "auto",
    config: Path | None = None,
    name: str | None = None,
    generation: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Convert `src` (Hugging Face folder, .gguf, or .pth of the released code) into the new model folder `dst`.

    dtype: auto keeps each tensor's own float type (quantised: float32); norms, gates and content stay float32 in any
    case, but those of a new memory are float16 numbers and stored so unless dtype is float32.
    config: for .pth, its config.json. name: default the destination's. generation: fields of
    generation_config.json where the source sets none.
    record: fields to add to source.json. Returns the summary that `lm2 convert --json` prints.
    Raises ConvertError, ConfigError or WriteError; `dst` does not exist then.
    """
    began = time.monotonic()
    if dtype != "auto" and dtype not in CODES:
        raise ConvertError(f"--dtype {dtype!r} must be one of auto, {', '.join(CODES)}")
    check_new_folder(dst)
    source = open_source(src, config, request)
    lm2, plan = _plan(source, request, dtype, shown(name) if name else folder_name(dst))
    files = _files(source, lm2, generation or {})
    total = sum(f.stat().st_size for f in source.files)
    with new_folder(dst) as folder:
        counter = Counter(report, "checking", total)
        hashes = [{"file": shown(f.name), "bytes": f.stat().st_size, "sha256": sha256(f, counter.add)} for f in source.files]
        written = _write_weights(folder, plan, report)
        seed = None if source.memory or request.adapter else request.seed
        notes = list(source.notes)
        origin: dict[str, object] = {"format": source.format, "files": hashes, "lm2_version": __version__, "seed": seed, "dtype": dtype}
        if request.adapter is not None:
            origin |= {"adapter": shown(request.adapter.name), "adapter_sha256": sha256(request.adapter / TENSORS)}
        elif not source.memory:
            origin["memory_recipe"] = RECIPE
        texts, left_out = carry(source.license_files, folder)
        notes += left_out
        about: dict[str, Any] = {**source.detail, **({FILES: texts} if texts else {}), **(record or {})}
        files[SOURCE] = to_json({**origin, **about, "notes": notes})
        for file, data in files.items():
            _put(folder / file, data)
        digests, bytes_written = written
        shapes = {t.name: (code, t.shape) for t, code in plan}
        fingerprint = combine_fingerprint(lm2, digests, shapes)
        write_fingerprint(folder, fingerprint)
    memory = lm2.to_dict()["memory"]
    return {
        "name": lm2.name,
        "path": str(dst),
        "format": source.format,
        "dtype": lm2.dtype,
        "layers": lm2.num_hidden_layers,
        "parameters": sum(_count(t.shape) for t, _ in plan),
        "memory_parameters": sum(_count(t.shape) for t, _ in plan if ".memory." in t.name),
        "bytes": bytes_written,
        "memory": memory,
        "tokenizer": source.tokenizer is not None,
        "chat_template": source.template is not None,
        "license": about.get(NAME) or ", ".join(texts) or None,
        "fingerprint": fingerprint,
        "notes": notes,
        "seconds": round(time.monotonic() - began, 3),
    }


def open_source(src: Path, config: Path | None, request: MemoryRequest) -> Source:
    """Open `src` by what it is. Raises ConvertError that says what can be converted."""
    pth = src.suffix == ".pth" or (src.suffix == ".pt" and src.is_file())
    if config is not None and not pth:
        raise ConvertError(f"--config is for released checkpoints (.pth), and {src} is none: leave it out")
    if not src.exists():
        hub = (" (download a hub model first, for example with `hf download`)") if len(src.parts) == 2 and not src.is_absolute() else ""
        raise ConvertError(f"{src} does not exist{hub}: give a Hugging Face folder, a .gguf file or a ckpt_iter_*.pth file")
    if pth:
        asked = {"--memory-layers": request.layers, "--memory-slots": request.slots, "--memory-chunk": request.chunk}
        for option, value in asked.items():
            if value is not None:
                raise ConvertError(f"{option} cannot be used with {src}: a released checkpoint brings its own memory")
        if request.cell == "gated":
            raise ConvertError(f"--memory-cell gated cannot be used with {src}: a released checkpoint is of cell released")
        if request.adapter is not None:
            raise ConvertError(f"--adapter cannot be used with {src}: a released checkpoint brings its own memory")
        return open_released(src, config, request.gate_pool or "chunk")
    if src.is_dir():
        if not (src / "config.json").is_file():
            gguf = sorted(src.glob("*.gguf"))
            hint = f"give the file itself, {gguf[0]}" if gguf else "give a Hugging Face folder"
            raise ConvertError(f"{src} has no config.json: {hint}")
        return open_huggingface(src)
    if src.suffix == ".safetensors":
        raise ConvertError(f"{src} is one file of a checkpoint: give the folder {src.parent}")
    return open_gguf(src)


def _plan(source: Source, request: MemoryRequest, dtype: str, name: str) -> tuple[LM2Config, Plan]:
    """The configuration, and every tensor to write with its dtype code, in file order."""
    backbone_dtype = CODES.get(dtype) or _common_dtype(source)
    adapter = open_adapter(request.adapter) if request.adapter is not None and source.memory is None else None
    config = _config(source, request, {**source.llama, "dtype": NAMES[backbone_dtype], "name": name}, adapter)
    left = dict(source.tensors)
    if config.tie_word_embeddings and "lm_head.weight" in left:
        head, embedding = left.pop("lm_head.weight"), left.get("model.embed_tokens.weight")
        if embedding is None or not same(head, embedding):
            raise ConvertError(
                f"{source.config_file}: tie_word_embeddings is true but lm_head.weight differs from model.embed_tokens.weight "
                f"in {source.file_of(head)}: set it to false"
            )
    plan: Plan = []
    made: dict[str, SourceTensor] = {}
    for tensor_name, shape in tensor_shapes(config).items():
        new = source.memory is None and ".memory." in tensor_name
        if new and tensor_name not in made:
            # The layer's attention comes earlier in file order, so it was checked by now.
            if adapter is not None:
                made = adapter.tensors(config)
            else:
                made = start_values(config, int(tensor_name.split(".")[2]), source.tensors, request.seed, request.scale)
        tensor = made[tensor_name] if new else left.pop(tensor_name, None)
        if tensor is None:
            raise ConvertError(
                f"{source.listing} has no tensor {tensor_name}, its config calls for one of shape {list(shape)}: "
                "a file is missing, or the config is another model's"
            )
        if tensor.shape != shape:
            raise ConvertError(
                f"{source.file_of(tensor)}: tensor {tensor_name} is {list(tensor.shape)}, its config calls for {list(shape)}: "
                "they are not of one model"
            )
        if new and adapter is not None and dtype == "auto":
            plan.append((tensor, tensor.dtype))
            continue
        plan.append((tensor, _code(tensor, new, backbone_dtype, dtype)))
    for extra in left.values():
        raise ConvertError(
            f"{source.file_of(extra)} has tensor {extra.name} {list(extra.shape)}, its config does not call for it: they are not of one model"
        )
    return config, plan


def _code(tensor: SourceTensor, new: bool, backbone_dtype: str, dtype: str) -> str:
    """The dtype code a tensor is written in. new: it belongs to a memory that starts here. dtype: as the user asked."""
    code = backbone_dtype if new else CODES.get(dtype, tensor.dtype)
    if not stays_float32(tensor.name):
        return code
    if new and len(tensor.shape) == 2 and dtype != "float32" and tensor.dtype == "F16":
        return "F16"  # drawn in float16, computed in float32: half the bytes, the same numbers
    return "F32" if code in ("BF16", "F16") else code


def _config(source: Source, request: MemoryRequest, fields: Mapping[str, Any], adapter: Adapter | None) -> LM2Config:
    try:
        config = LM2Config.from_llama(fields, memory=source.memory or NO_MEMORY)
    except ConfigError as error:
        raise ConfigError(f"{source.config_file}: {error}") from None
    if adapter is not None:
        config = replace(config, memory=adapter.memory)
        check_backbone(adapter, config, source.tensors, source.path)
        check_shapes(adapter, config)
        return config
    if source.memory is not None:
        return config
    c = config
    memory = plan_memory(request, c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.head_dim, c.max_position_embeddings)
    try:
        config = replace(config, memory=memory)
        config.check()
    except ConfigError as error:
        # The config itself was right: what is wrong now was asked for.
        raise ConfigError(re.sub(r"\bmemory\.(slots|chunk|layers)\b", r"--memory-\1", str(error))) from None
    return config


def _files(source: Source, config: LM2Config, generation: Mapping[str, Any]) -> dict[str, bytes]:
    """What stands beside the weights, by file name. Raises ConvertError for what loading would refuse, before anything is written."""
    settings = {**generation, **(source.generation or {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_id)})}
    settings = {key: value for key, value in settings.items() if value is not None}
    beside = source.config_file.with_name(GENERATION) if source.generation else source.config_file
    try:
        read_ends(settings, config.vocab_size)
        found = read_settings(settings)
    except PromptError as error:
        raise ConvertError(f"{beside}: {error}: correct the file or remove it") from None
    if "top_k" in found:
        settings["top_k"] = found["top_k"]
    files = {CONFIG: to_json(config.to_dict()), GENERATION: to_json(settings)}
    if source.tokenizer is not None:
        files[TOKENIZER] = source.tokenizer
    if source.tokenizer_config:
        files[TOKENIZER_CONFIG] = to_json(source.tokenizer_config)
    if source.template:
        try:
            files[TEMPLATE] = source.template.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConvertError(
                f"{source.config_file}: its chat template has half a surrogate pair at character {error.start}: restore it"
            ) from None
    for name, data in files.items():
        if len(data) > FILE_BYTES_MAX[name]:
            where = {GENERATION: beside}.get(name, source.config_file.parent if source.config else source.path)
            raise ConvertError(
                f"{where}: its {name} would have {len(data)} bytes, more than the {FILE_BYTES_MAX[name]} that are read again: "
                "the model is not converted; give a source with a smaller one"
            )
    return files


def _common_dtype(source: Source) -> str:
    """The dtype code that most of the source's weights have."""
    counts: dict[str, int] = {}
    for tensor in source.tensors.values():
        if not stays_float32(tensor.name):
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + _count(tensor.shape)
    if not counts:
        raise ConvertError(f"{source.path} holds no weights: download the checkpoint again")
    return max(counts, key=lambda code: counts[code])


def _write_weights(folder: Path, plan: Plan, report: Report) -> tuple[dict[str, str], int]:
    """Write model.safetensors. Returns each tensor's sha256, taken on the way, and the bytes of all."""
    sizes = {t.name: _count(t.shape) * ITEM_BYTES[code] for t, code in plan}
    digests: dict[str, str] = {}

    def fill(f: BinaryIO) -> None:
        counter = Counter(report, "converting", sum(sizes.values()))
        writer = TensorWriter(f, [(t.name, code, t.shape) for t, code in plan], {"format": "pt"})
        for tensor, code in plan:
            writer.write(tensor.name, (_counted(cast(b, tensor.dtype, code, tensor.name), counter) for b in tensor.blocks()))
        writer.finish()
        digests.update(writer.digests)

    write_file(folder / WEIGHTS, fill)
    return digests, sum(sizes.values())


def _counted(block: np.ndarray, counter: Counter) -> np.ndarray:
    counter.add(block.nbytes)
    return block


def _put(path: Path, data: bytes) -> None:
    write_file(path, lambda f: f.write(data) and None)


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
