"""What a training run began from, as it is kept in its checkpoint: the model, its texts, and what the data says. Knows digests; reads no text.

A checkpoint holds the trained parameters only, so that it says nothing of the others: without this, a run would go on under another model of
the same shape.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.adapter import RECORD, TENSORS
from ..config import LM2Config
from ..layout import TEMPLATE, TOKENIZER, ModelFolder
from ..recall import RECORD as RECALL
from ..recall import TENSORS as ARRAYS

SCRATCH = "from its seed"


def origin(config: LM2Config, begun: ModelFolder | None, texts: Path, data: Any, adapter: Path | None = None, recall: Path | None = None) -> dict[str, str]:
    """By name, what a run must find again to go on: `model` (its fingerprint, or that it is from a seed), `memory`, `tokenizer`, `template`
    if there is one, `adapter` and `recall` if it began from one, and `data`.

    config: of the model in training. begun: the model folder that it was. texts: the folder with the tokenizer, for a model that is from a
    seed. data: what was read of the data, as lists of texts.
    """
    texts = texts if begun is None else begun.path
    memory = {k: v for k, v in config.to_dict()["memory"].items() if k != "trained"}
    found = {
        "model": SCRATCH if begun is None else begun.fingerprint,
        "memory": json.dumps(memory, sort_keys=True),
        "data": _digest(json.dumps(data).encode("ascii")),
    }
    for name, file in (("tokenizer", texts / TOKENIZER), ("template", texts / TEMPLATE)):
        if file.is_file():
            found[name] = _digest(file.read_bytes())
    if adapter is not None:
        found["adapter"] = _digest((adapter / RECORD).read_bytes() + (adapter / TENSORS).read_bytes())
    if recall is not None:
        found["recall"] = _digest((recall / RECALL).read_bytes() + (recall / ARRAYS).read_bytes())
    return found


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> tuple[str, str | None, str | None] | None:
    """The first thing that two origins do not share: its name, and both values shortened for people; None if there is none."""
    for name in sorted({*there, *here}, key=lambda n: (n != "model", n)):
        if there.get(name) != here.get(name):
            return name, _short(there.get(name)), _short(here.get(name))
    return None


def _short(value: str | None) -> str | None:
    return value[:12] if value is not None and len(value) == 64 else value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
