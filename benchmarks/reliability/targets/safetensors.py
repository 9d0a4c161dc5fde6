"""safetensors headers. Right means: the safetensors library finds the same tensors in the same bytes."""

import importlib
from pathlib import Path

import kit
import numpy as np
from mutate import mutate_tensors

from lm2.models.errors import LM2Error
from lm2.models.tensorfile import NUMPY, read_header, read_tensor

from . import Target


def target(place: Path) -> Target:
    library = importlib.import_module("safetensors")
    save = importlib.import_module("safetensors.numpy").save
    file = place / "fuzzed.safetensors"
    a = np.arange(24, dtype=np.float32)
    seeds = [
        save({"a": a.reshape(2, 3, 4)}, {"format": "pt"}),
        save({"a": a.reshape(4, 6), "b": a.astype(np.float16), "c": a.astype(np.int32).reshape(24, 1), "é \U0001f600": a[:1]}),
        save({"scalar": np.array(3.0, np.float32), "none": a[:0].reshape(0, 5), "flags": a > 3, "bytes": a.astype(np.uint8), "wide": a.astype(np.float64)}),
        save({}),
    ]

    def check(data: bytes) -> str:
        file.write_bytes(data)
        try:
            header = read_header(file)
        except LM2Error as error:
            return kit.check_refusal(error, file) + f": {error}"
        try:
            entries = {name: entry for name, entry in library.deserialize(data)}
        except Exception as error:
            raise kit.Wrong(f"accepted, the library says {error}") from None
        kit.equal("names", set(header.tensors), set(entries))
        kit.equal("bytes", header.file_bytes, len(data))
        with open(file, "rb") as f:
            for name, info in header.tensors.items():
                entry = entries[name]
                kit.equal(f"shape of {name}", list(info.shape), list(entry["shape"]))
                kit.equal(f"dtype of {name}", info.dtype, entry["dtype"])
                if info.dtype not in NUMPY and info.dtype != "BF16":
                    continue  # a dtype of the format that nothing here computes with: whoever opens the file refuses it by name
                kit.need(read_tensor(f, info).tobytes() == bytes(entry["data"]), f"values of {name}")
        with library.safe_open(file, "np") as opened:
            kit.equal("metadata", header.metadata, opened.metadata() or {})
        return ""

    return Target("safetensors", seeds, mutate_tensors, check)
