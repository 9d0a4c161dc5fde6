"""An encoder's files: `encoder.json`, two of tensors and its words, beside a recall's. Knows the files, and a BERT's folder that one is made of.

Everything is checked before use: what does not fit is refused with the file, both values and the remedy. Matrices of a source become 8 bits, a step for each
row, when the files are written.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import write_file
from ..config import read_json
from ..errors import ModelFileError, TensorFileError, TokenizerError
from ..tensorfile import TensorWriter, read_header, read_tensor
from ..text.library import ids_of, open_library
from .bert import Sizes, rounded, shapes
from .encoder import Encoder
from .record import read_record

RECORD, LAYERS, WORDS, TOKENIZER = FILES = ("encoder.json", "encoder.safetensors", "encoder_words.safetensors", "encoder_tokenizer.json")
FORMAT, TOKENIZER_MAX = 1, 1 << 23
REMEDY = "get the encoder's files again"
MOST = Sizes(1 << 20, 1 << 14, 4096, 1 << 15, 64, 256)
WEIGHT, AMONG = 30.0, 32  # chosen on held-out conversations, some of which figures are of (docs/decisions.md)


def open_encoder(folder: Path) -> Encoder | None:
    """Read and check an encoder; None where the folder has none. Raises ModelFileError naming the file, both values and the remedy."""
    where = folder / RECORD
    if not where.exists():
        return None
    record = read_record(where, "encoder", FORMAT, ("weight", "among", "source", *Sizes._fields), REMEDY)
    sizes = Sizes(*(_whole(where, record, name, most) for name, most in zip(Sizes._fields, MOST, strict=True)))
    if sizes.width % sizes.heads:
        raise ModelFileError(f"{where}: width {sizes.width} must be a multiple of heads {sizes.heads}: {REMEDY}")
    weight, source = record.get("weight"), record.get("source", {})
    if type(weight) not in (int, float) or not math.isfinite(weight) or not 0 <= weight <= 1e4:  # type: ignore[arg-type,operator]
        raise ModelFileError(f"{where}: weight {weight!r} must be a number from 0 to 10000: {REMEDY}")
    if not isinstance(source, Mapping) or not all(isinstance(x, str) for x in source.values()):
        raise ModelFileError(f"{where}: source must be an object of texts: {REMEDY}")
    arrays = {**read_arrays(folder / LAYERS, _of(sizes, False)), **read_arrays(folder / WORDS, _of(sizes, True))}
    return Encoder(sizes, arrays, _tokenizer(folder / TOKENIZER, sizes.vocabulary), float(weight), _whole(where, record, "among", 1 << 16), source)  # type: ignore[arg-type]


def write_encoder(folder: Path, encoder: Encoder) -> None:
    """Write an encoder's files into `folder`, each whole or not at all. Raises WriteError."""
    for name, words in ((LAYERS, False), (WORDS, True)):
        tensors = _of(encoder.sizes, words)

        def fill(f: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...]]] = tensors) -> None:
            writer = TensorWriter(f, [(name, *of) for name, of in tensors.items()], {})
            for name in tensors:
                writer.write(name, [encoder.arrays[name]])
            writer.finish()

        write_file(folder / name, fill)
    record = {"format": FORMAT, **encoder.sizes._asdict(), "weight": encoder.weight, "among": encoder.among, "source": encoder.source}
    body, text = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(), encoder.tokenizer.to_str().encode()
    write_file(folder / TOKENIZER, lambda f: f.write(text))
    write_file(folder / RECORD, lambda f: f.write(body))


def from_bert(folder: Path, source: Mapping[str, str], weight: float = WEIGHT, among: int = AMONG) -> Encoder:
    """The encoder that a Hugging Face folder of a BERT holds (`config.json`, `model.safetensors`, `tokenizer.json`), its matrices in 8 bits.

    Raises ModelFileError for another model_type, activation, position embedding or dtype, named with the file and the value.
    """
    where, config = folder / "config.json", read_json(folder / "config.json")
    for name, want in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        found = config.get(name) if isinstance(config, Mapping) else None
        if found != want:
            raise ModelFileError(f"{where}: {name} {found!r} must be {want!r}: give the folder of a BERT")
    names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = Sizes(*(_whole(where, config, name, most) for name, most in zip(names, MOST, strict=True)))
    try:
        arrays = rounded(shapes(sizes), _bert(folder / "model.safetensors", sizes))
    except ValueError as error:
        raise ModelFileError(f"{error}: give the folder of a BERT") from None
    return Encoder(sizes, arrays, _tokenizer(folder / "tokenizer.json", sizes.vocabulary), weight, among, source)


def _of(sizes: Sizes, words: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: of for name, of in shapes(sizes).items() if name.startswith("words") == words}


def _whole(where: Path, record: Mapping[str, Any], name: str, most: int) -> int:
    value = record.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ModelFileError(f"{where}: {name} {value!r} must be a whole number from 1 to {most}: {REMEDY}")
    return value


def read_arrays(file: Path, want: Mapping[str, tuple[str, tuple[int, ...]]], record: str = RECORD) -> dict[str, np.ndarray]:
    """The tensors that `record` calls for, each checked. Raises ModelFileError naming the file, both values and the remedy."""
    try:
        header = read_header(file)
        for name in sorted(set(want) | set(header.tensors)):
            info = header.tensors.get(name)
            have = None if info is None else (info.dtype, info.shape)
            if have != want.get(name):
                raise ModelFileError(f"{file}: tensor {name} is {have}, {record} calls for {want.get(name)}: {REMEDY}")
        with open(file, "rb") as f:
            arrays = {name: read_tensor(f, header.tensors[name]) for name in want}
    except (TensorFileError, OSError) as error:
        raise ModelFileError(f"{error}: {REMEDY}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not (np.isfinite(array).all() and np.abs(array).max() < 1e6):
            raise ModelFileError(f"{file}: tensor {name} has values that are no numbers, or beyond a million: {REMEDY}")
    return arrays


def _tokenizer(file: Path, vocabulary: int) -> Any:
    try:
        if (size := file.stat().st_size) > TOKENIZER_MAX:
            raise ModelFileError(f"{file} has {size} bytes, more than the {TOKENIZER_MAX} allowed: {REMEDY}")
        tokenizer = open_library(file.read_bytes(), str(file), REMEDY, marked=True)
    except OSError as error:
        raise ModelFileError(f"cannot read {file}: {error}: {REMEDY}") from None
    except TokenizerError as error:
        raise ModelFileError(str(error)) from None
    around = len(tokenizer.encode("a").ids) - len(ids_of(tokenizer, "a"))
    if (count := tokenizer.get_vocab_size()) > vocabulary or around != 2:
        raise ModelFileError(f"{file} has {count} words and puts {around} around a text, the encoder has {vocabulary} and needs 2: {REMEDY}")
    return tokenizer


def _bert(file: Path, sizes: Sizes) -> dict[str, np.ndarray]:
    """A BERT's tensors under the names of `shapes`, float32, q, k and v on top of each other."""
    try:
        header = read_header(file)
        with open(file, "rb") as f:

            def get(name: str) -> np.ndarray:
                info = header.tensors.get(name)
                if info is None or info.dtype != "F32":
                    raise ModelFileError(f"{file}: tensor {name} is {'not there' if info is None else info.dtype}, a BERT's is F32: give the folder of a BERT")
                return read_tensor(f, info)

            found = {"words": get("embeddings.word_embeddings.weight"), "places": get("embeddings.position_embeddings.weight")}
            found["segment"] = get("embeddings.token_type_embeddings.weight")[0]  # (d,)
            found["norm"], found["norm.bias"] = get("embeddings.LayerNorm.weight"), get("embeddings.LayerNorm.bias")
            for i in range(sizes.layers):
                at = f"encoder.layer.{i}."
                for end, suffix in (("", "weight"), (".bias", "bias")):
                    found[f"{i}.qkv{end}"] = np.concatenate([get(f"{at}attention.self.{x}.{suffix}") for x in ("query", "key", "value")])
                    for name, of in (("out", "attention.output.dense"), ("attention_norm", "attention.output.LayerNorm"), ("up", "intermediate.dense"),
                                     ("down", "output.dense"), ("mlp_norm", "output.LayerNorm")):  # fmt: skip
                        found[f"{i}.{name}{end}"] = get(f"{at}{of}.{suffix}")
    except (TensorFileError, OSError) as error:
        raise ModelFileError(f"{error}: give the folder of a BERT") from None
    return found
