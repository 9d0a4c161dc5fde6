"""A reader's files: `reader.json` and `reader.safetensors`, beside an encoder's. Knows the files.

Everything is checked before use: what does not fit is refused with the file, both values and the remedy.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..atomic import write_file
from ..errors import ModelFileError
from ..tensorfile import TensorWriter
from .encoder import Encoder
from .encoder_files import RECORD as ENCODER
from .encoder_files import read_arrays
from .reader import Reader, Use, reader_shapes
from .record import read_record

RECORD, TENSORS = FILES = ("reader.json", "reader.safetensors")
FORMAT, AMONG_MAX = 2, 256
REMEDY = "get the reader's two files again"


def open_reader(folder: Path, encoder: Encoder | None) -> Reader | None:
    """Read and check a reader; None where the folder has none. Raises ModelFileError naming the file, both values and the remedy."""
    where = folder / RECORD
    if not where.exists():
        return None
    record = read_record(where, "reader", FORMAT, ("training", *Use._fields), REMEDY)
    among, training = record.get("among"), record.get("training", {})
    if type(among) is not int or not 1 <= among <= AMONG_MAX:
        raise ModelFileError(f"{where}: among {among!r} must be a whole number from 1 to {AMONG_MAX}: {REMEDY}")
    use = Use(among, _number(where, record, "weight", 0.0), _number(where, record, "doubt", -1e3), _number(where, record, "sure", -1e3))
    if not isinstance(training, Mapping):
        raise ModelFileError(f"{where}: training must be an object: {REMEDY}")
    if encoder is None:
        raise ModelFileError(f"{where}: a reader needs the encoder whose words it reads, and there is no {ENCODER}: get the encoder's files, or remove the reader's")
    return Reader(encoder, read_arrays(folder / TENSORS, reader_shapes(encoder.sizes), RECORD), use, training)


def _number(where: Path, record: Mapping[str, Any], name: str, least: float) -> float:
    value = record.get(name)
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= 1e3:  # type: ignore[arg-type,operator]
        raise ModelFileError(f"{where}: {name} {value!r} must be a number from {least:g} to 1000: {REMEDY}")
    return float(value)  # type: ignore[arg-type]


def write_reader(folder: Path, reader: Reader) -> None:
    """Write a reader's files into `folder`, each whole or not at all. Raises WriteError."""
    tensors = reader_shapes(reader.sizes)

    def fill(f: BinaryIO) -> None:
        writer = TensorWriter(f, [(name, *of) for name, of in tensors.items()], {})
        for name in tensors:
            writer.write(name, [reader.own[name]])
        writer.finish()

    body = (json.dumps({"format": FORMAT, **reader.use._asdict(), "training": reader.training}, indent=1, ensure_ascii=False) + "\n").encode()
    write_file(folder / TENSORS, fill)
    write_file(folder / RECORD, lambda f: f.write(body))
