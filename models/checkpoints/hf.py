"""A Hugging Face folder as a source: config, one or many safetensors files; the files of text are hf_text.py's, what a family is families/'s.

Knows Hugging Face's file names and index; every weight file goes through the strict header check. Imports no ML
library.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvertError, TensorDtypeError, TensorFileError
from ..fields import is_whole
from ..layout import GENERATION
from ..tensorfile import ITEM_BYTES, Header, TensorInfo, read_header, read_tensor
from . import hf_text
from .families.family import folded
from .families.registry import family_of
from .license import license_files, said_in_folder
from .llama_fields import check_fields
from .source import FLOATS, Source, SourceTensor, read_object, rows_per_block

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INDEX_BYTES_MAX = 32 << 20


def open_huggingface(folder: Path) -> Source:
    """Open the folder of a family that is known. Raises ConvertError or ConfigError naming the file, the field or tensor, and the remedy."""
    config = read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind == "lm2":
        raise ConvertError(f"{folder} is an lm2 model already: use it as it is")
    family = family_of(config, folder / "config.json")
    check_fields(config, folder / "config.json", family=family)
    files = _weight_files(folder)
    tensors: dict[str, SourceTensor] = {}
    for file, names in files.items():
        header = _header(file)
        for name in names if names is not None else header.tensors:
            if name not in header.tensors:
                raise ConvertError(
                    f"{folder / INDEX}: tensor {name} is not in {file.name}: the files are not of one checkpoint; download them again"
                )
        for name, info in header.tensors.items():
            if name in tensors or (names is not None and name not in names):
                raise ConvertError(f"{file}: tensor {name} contradicts {INDEX}: the files are not of one checkpoint; download them again")
            if not name.endswith("rotary_emb.inv_freq"):
                tensors[name] = _source_tensor(file, info)
    generation = read_object(folder / GENERATION) if (folder / GENERATION).is_file() else None
    for name, fields in (("config.json", config), (GENERATION, generation or {})):
        _check_ids(folder / name, fields, config.get("vocab_size"))
    complete = family.complete(config)
    llama, notes = family.llama(complete, folder / "config.json")
    tensors = folded(family.fold, tensors, complete, folder / "config.json")
    llama["eos_token_id"] = _ids((generation or {}).get("eos_token_id"), config.get("eos_token_id"))
    if llama.get("bos_token_id") is None:
        llama["bos_token_id"] = (generation or {}).get("bos_token_id")
    template = hf_text.chat_template(folder)
    text = hf_text.read(folder, llama, template)
    llama |= text.ids
    return Source(
        format="huggingface",
        files=tuple(files),
        config=folder / "config.json",
        index=folder / INDEX if (folder / INDEX).is_file() else None,
        llama=llama,
        tensors=tensors,
        tokenizer=text.tokenizer,
        template=template,
        tokenizer_config=text.config,
        generation=generation,
        detail={"architectures": config.get("architectures")} | ({} if kind == "llama" else {"model_type": kind}) | said_in_folder(folder, config),
        license_files=tuple(license_files(folder)),
        notes=(*text.notes, *notes),
    )


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files and the tensors the index expects in each (None: no index)."""
    if (folder / INDEX).is_file():
        weight_map = read_object(folder / INDEX, INDEX_BYTES_MAX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConvertError(f"{folder / INDEX}: weight_map must map tensors to files: restore the file")
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            # A plain name only: an index from outside must not point out of its folder.
            if not isinstance(file, str) or not file.endswith(".safetensors") or any(c in file for c in "/\\:\0") or file.startswith("."):
                raise ConvertError(f"{folder / INDEX}: tensor {name} points to {file!r}: it must be a .safetensors file in the same folder")
            names = files.setdefault(folder / file, set())
            assert names is not None
            names.add(name)
        return dict(sorted(files.items()))
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    remedy = "save the model again with safe_serialization" if list(folder.glob("pytorch_model*.bin")) else "download the whole checkpoint"
    raise ConvertError(f"{folder} has neither {SINGLE} nor {INDEX}: {remedy}")


def _header(file: Path) -> Header:
    try:
        return read_header(file)
    except TensorDtypeError as error:
        raise ConvertError(f"{error}: convert the unquantised checkpoint") from None
    except TensorFileError as error:
        raise ConvertError(f"{error}: download the file again") from None


def _source_tensor(file: Path, info: TensorInfo) -> SourceTensor:
    if info.dtype not in FLOATS:
        raise ConvertError(
            f"{file}: tensor {info.name} has dtype {info.dtype}, expected one of {', '.join(FLOATS)}: convert the unquantised checkpoint"
        )
    return SourceTensor(info.name, info.dtype, info.shape, partial(_blocks, file, info), file)


def _blocks(file: Path, info: TensorInfo) -> Iterator[np.ndarray]:
    with open(file, "rb") as f:
        if not info.shape:
            yield read_tensor(f, info)
            return
        row = info.nbytes // info.shape[0] if info.shape[0] else 0
        step = rows_per_block(info.shape, ITEM_BYTES[info.dtype])
        for start in range(0, info.shape[0], step):
            n = min(step, info.shape[0] - start)
            begin = info.begin + start * row
            yield read_tensor(f, TensorInfo(info.name, info.dtype, (n, *info.shape[1:]), begin, begin + n * row))


def _ids(*values: Any) -> list[Any]:
    """Token ids of several fields (a number, a list or nothing), each once, in order."""
    flat = [i for v in values if v is not None for i in (v if isinstance(v, list) else [v])]
    return [i for n, i in enumerate(flat) if i not in flat[:n]]


def _check_ids(file: Path, fields: Mapping[str, Any], vocab: Any) -> None:
    """Raise ConvertError, naming the file the id stands in: after this the ids of two files become one list."""
    for key in ("bos_token_id", "eos_token_id"):
        for i in _ids(fields.get(key)):
            if is_whole(vocab) and (not is_whole(i) or not 0 <= i < vocab):
                raise ConvertError(f"{file}: {key} {i!r} must be a token id below vocab_size {vocab}: correct the file")
