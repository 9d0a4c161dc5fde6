"""A baseline's folder: config.json that says what it is, weights in safetensors, the texts of its tokenizer. Knows files and names."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import new_folder
from ..errors import ModelFileError, TensorFileError
from ..layout import CONFIG, WEIGHTS
from ..tensorfile import TensorWriter, read_header, read_tensor
from ..weights import slots_of
from .config import TENSOR, read_baseline
from .model import Baseline


def tensors(model: Baseline) -> dict[str, Tensor]:
    """Every tensor of a folder by its name on disk, as a view into the parameters."""
    found = dict(slots_of(model))
    return found if model.memory_tokens is None else found | {TENSOR: model.memory_tokens.data}


def write_baseline(model: Baseline, folder: Path) -> None:
    """Write config.json and the weights, float32, into a folder that is being made. Raises OSError."""
    slots = tensors(model)
    with open(folder / WEIGHTS, "wb") as f:
        writer = TensorWriter(f, [(name, "F32", tuple(slot.shape)) for name, slot in slots.items()], {"format": "pt"})
        for name, slot in slots.items():
            writer.write(name, [slot.detach().float().cpu().numpy()])
        writer.finish()
    (folder / CONFIG).write_text(json.dumps(model.baseline.to_dict(), indent=2) + "\n", encoding="utf-8")


def save_baseline(model: Baseline, path: Path) -> None:
    """Write a folder of its own. Raises WriteError."""
    with new_folder(path) as folder:
        write_baseline(model, folder)


def load_baseline(path: Path, device: str | torch.device = "cpu") -> tuple[Baseline, str]:
    """The model of a folder, in float32 and for inference, and its fingerprint. Raises ModelFileError or ConfigError naming the file."""
    config = read_baseline(path)
    model = Baseline(config).eval().requires_grad_(False)
    mark = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    file = path / WEIGHTS
    try:
        header = read_header(file)
    except TensorFileError as error:
        raise ModelFileError(f"{error}: restore the file, or train the baseline again") from None
    slots = tensors(model)
    for name in sorted({*slots, *header.tensors}):
        have, want = header.tensors.get(name), slots.get(name)
        there, called = (None if have is None else list(have.shape)), (None if want is None else list(want.shape))
        if there != called or have is None or have.dtype != "F32":
            raise ModelFileError(f"{file}: tensor {name} is {there} {have.dtype if have else ''}, {CONFIG} calls for {called} F32: the two files are not of one model")
    with open(file, "rb") as f:
        for name, slot in slots.items():
            value = read_tensor(f, header.tensors[name])
            slot.copy_(torch.from_numpy(value))
            if not torch.isfinite(slot).all():
                raise ModelFileError(f"{file}: tensor {name} has values that are not finite: train the baseline again")
            mark.update(f"{name} ".encode() + value.tobytes())
    return model.to(device), mark.hexdigest()
