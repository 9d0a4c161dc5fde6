"""A recall's files: `recall.json` and `recall.safetensors`, in a folder of their own or in a model's. Knows the files and which model they fit.

Everything is checked before use: what does not fit is refused with the file, both values and the remedy.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..atomic import new_folder, write_file
from ..config import LM2Config
from ..errors import ModelFileError, TensorFileError
from ..opening import Opening
from ..tensorfile import TensorWriter, read_header, read_tensor
from .encoder import Encoder
from .encoder_files import open_encoder, write_encoder
from .finder import Finder, shapes
from .reader import Reader
from .reader_files import open_reader, write_reader
from .record import read_record

RECORD, TENSORS = "recall.json", "recall.safetensors"
FORMAT = 2
REMEDY = "get the two files again"
SURE = 8.0  # what a reading counts for at most: so it is known what the others could still come to


class Recall(NamedTuple):
    """finder and opening. lead, item, ask: what is written before the passages, before each of them, and before the message that asks; unsaid: what is
    answered where a passage does not tell what is asked for, its first token counts. tokens: of a message or a passage that the finder reads; margin: by
    how much the best must be nearer than nothing told; read: passages that are each read by themselves, the nearest ones; trust: how much such a reading
    weighs beside nearness; doubt: what it must come to at least; most: passages an answer is made from at most; share: of the best one's weight that
    another needs to come along; near: that it needs to stand beside it, in the order they were said. backbone: name and key of the model it was trained
    on. training: how, for people. encoder: what looks again at the passages that the finder likes, reader: what says which of their words answer, where there are such."""

    finder: Finder
    opening: Opening
    lead: str
    item: str
    ask: str
    unsaid: str
    tokens: int
    margin: float
    read: int
    trust: float
    doubt: float
    most: int
    share: float
    near: float
    backbone: tuple[str, str]
    training: Mapping[str, Any]
    encoder: Encoder | None = None
    reader: Reader | None = None

    def message(self, passages: list[str], question: str) -> str:
        """What is answered: the passages as `choice` arranges them, and the message that asks for them."""
        return self.lead + "".join(f"{self.item}{' '.join(p.split())}\n" for p in passages) + self.ask + question

    def nearest(self, scores: np.ndarray, nothing: float) -> list[int]:
        """Which passages of those with the finder's scores (p,), oldest first, are read, by the reader where there is one, the nearest first. None where nothing told is asked for."""
        if not len(scores) or scores.max() - nothing < self.margin:
            return []
        return [int(i) for i in np.argsort(-scores, kind="stable")[: self.read if self.reader is None else max(self.read, self.reader.use.among)]]

    def weight(self, score: float, odds: float) -> float:
        """Nearness and reading of a passage taken together: a logarithm."""
        return score + self.trust * min(odds, SURE)

    def choice(self, scores: Sequence[float], odds: Sequence[float]) -> list[int]:
        """Which of the passages that were read, given oldest first, an answer is made from, as they are written: the likeliest last, those about as likely
        as it in the order they were said. None where all are in doubt. odds: of each, that an answer begins with anything but `unsaid`, their logarithm."""
        both = np.array([self.weight(score, odd) for score, odd in zip(scores, odds, strict=True)])
        able = [int(i) for i in np.argsort(-both, kind="stable") if odds[i] >= self.doubt][: self.most]
        weight = {i: float(np.exp(both[i] - both[able[0]])) for i in able}
        kept = [i for i in reversed(able) if weight[i] >= self.share]
        return [i for i in kept if weight[i] < self.near] + sorted(i for i in kept if weight[i] >= self.near)


_NUMBERS: dict[str, tuple[type, float, float]] = {
    "tokens": (int, 1, 1024), "margin": (float, -1e3, 1e3), "read": (int, 1, 32), "trust": (float, 0, 1e3), "doubt": (float, -1e3, 1e3), "most": (int, 1, 32),
    "share": (float, 0, 1), "near": (float, 0, 1), "sharpness": (float, 1e-6, 1e6), "width": (int, 1, 4096), "positions": (int, 1, 4096),
}  # fmt: skip
_TEXTS = ("lead", "item", "ask", "unsaid")
TEXT_MAX = 1000
MIX_MAX = 1e6  # beyond it a token's vector could overflow in float32


def open_recall(folder: Path, config: LM2Config) -> Recall:
    """Read and check a recall for a model of this configuration. Raises ModelFileError naming the file, both values and the remedy."""
    where = folder / RECORD
    if not where.exists():
        raise ModelFileError(f"{where} does not exist: give a recall's folder, as `lm2 train --task seek` writes it")
    record = read_record(where, "recall", FORMAT, ("backbone", "training", *_NUMBERS, *_TEXTS), REMEDY)
    numbers = {name: _number(where, record, name) for name in _NUMBERS}
    texts = {name: _text(where, record, name) for name in _TEXTS}
    backbone, training = record.get("backbone"), record.get("training", {})
    if not isinstance(backbone, Mapping) or set(backbone) != {"name", "key"} or not all(_is_text(x) for x in backbone.values()):
        raise ModelFileError(f"{where}: backbone must have a name and a key, and nothing else: {REMEDY}")
    if not isinstance(training, Mapping):
        raise ModelFileError(f"{where}: training must be an object: {REMEDY}")
    arrays = _arrays(folder / TENSORS, config, int(numbers["width"]), int(numbers["positions"]))
    opening = Opening(arrays.pop("keys"), arrays.pop("values"))
    finder = Finder(**arrays, sharpness=numbers.pop("sharpness"))
    encoder = open_encoder(folder)
    return Recall(
        finder, opening, texts["lead"], texts["item"], texts["ask"], texts["unsaid"], int(numbers["tokens"]), numbers["margin"],
        int(numbers["read"]), numbers["trust"], numbers["doubt"], int(numbers["most"]), numbers["share"], numbers["near"], (backbone["name"], backbone["key"]), training,
        encoder, open_reader(folder, encoder),
    )  # fmt: skip


def _text(where: Path, record: Mapping[str, Any], name: str) -> str:
    text = record.get(name)
    if not _is_text(text):
        raise ModelFileError(f"{where}: {name} must be a text of at most {TEXT_MAX} characters: {REMEDY}")
    if name == "unsaid" and not text:
        raise ModelFileError(f"{where}: unsaid must be a text of 1 to {TEXT_MAX} characters: {REMEDY}")
    return str(text)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX


def _number(where: Path, record: Mapping[str, Any], name: str) -> float:
    kind, low, high = _NUMBERS[name]
    value = record.get(name)
    right = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    if not right or not low <= value <= high:  # type: ignore[operator]
        raise ModelFileError(f"{where}: {name} {value!r} must be a number from {low:g} to {high:g}: {REMEDY}")
    return value  # type: ignore[return-value]


def plan(config: LM2Config, width: int, positions: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the file in its order: dtype and shape, for a model of this configuration."""
    c = config
    kv = ("F16", (c.num_hidden_layers, c.num_key_value_heads, positions, c.head_dim))
    return {**shapes(c.vocab_size, width), "keys": kv, "values": kv}


def _arrays(file: Path, config: LM2Config, width: int, positions: int) -> dict[str, np.ndarray]:
    want = plan(config, width, positions)
    try:
        header = read_header(file)
        for name in sorted(set(want) | set(header.tensors)):
            info = header.tensors.get(name)
            have, wanted = None if info is None else (info.dtype, info.shape), want.get(name)
            if have != wanted:
                raise ModelFileError(f"{file}: tensor {name} is {_shown(have)}, a recall for this model has {_shown(wanted)}: give the model its own")
        with open(file, "rb") as f:
            arrays = {name: read_tensor(f, header.tensors[name]) for name in want}
    except (TensorFileError, OSError) as error:
        raise ModelFileError(f"{error}: {REMEDY}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelFileError(f"{file}: tensor {name} has values that are no numbers: {REMEDY}")
    if np.abs(arrays["mix"]).max() > MIX_MAX:
        raise ModelFileError(f"{file}: tensor mix has values beyond {MIX_MAX:g}: {REMEDY}")
    if not (arrays["weight_asking"] > 0).all():
        raise ModelFileError(f"{file}: tensor weight_asking must be above 0: {REMEDY}")
    return arrays


def save_recall(folder: Path, config: LM2Config, recall: Recall) -> None:
    """Write a folder with a recall, whole or not at all. Raises WriteError, and ValueError for arrays that do not fit the configuration or
    hold what a file cannot."""
    with new_folder(folder) as made:
        write_recall(made, config, recall)


def write_recall(folder: Path, config: LM2Config, recall: Recall) -> None:
    """Write a recall's two files, and its encoder's and reader's, into `folder`."""
    width, positions = recall.finder.asking.shape[1], recall.opening.keys.shape[2]
    tensors = plan(config, width, positions)
    arrays = {**recall.finder._asdict(), **recall.opening._asdict()}
    kinds = {"I8": np.int8, "F16": np.float16, "F32": np.float32}

    def fill(f: BinaryIO) -> None:
        writer = TensorWriter(f, [(name, *of) for name, of in tensors.items()], {})
        for name, (dtype, shape) in tensors.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} is {arrays[name].shape}, the configuration calls for {shape}")
            with np.errstate(over="ignore"):
                kept = arrays[name].astype(kinds[dtype])
            if not np.isfinite(kept).all():
                raise ValueError(f"{name} has values that {dtype} cannot hold")
            writer.write(name, [kept])
        writer.finish()

    record = {
        "format": FORMAT, "backbone": dict(zip(("name", "key"), recall.backbone, strict=True)),
        **{name: getattr(recall, name) for name in (*_TEXTS, *_NUMBERS) if name in Recall._fields},
        "sharpness": recall.finder.sharpness, "width": width, "positions": positions, "training": dict(recall.training),
    }  # fmt: skip
    body = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    if recall.encoder is not None:
        write_encoder(folder, recall.encoder)
    if recall.reader is not None:
        write_reader(folder, recall.reader)
    write_file(folder / TENSORS, fill)
    write_file(folder / RECORD, lambda f: f.write(body))


def _shown(of: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if of is None else f"{of[0]} {list(of[1])}"
