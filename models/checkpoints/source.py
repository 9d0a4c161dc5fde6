"""What every way in hands to the conversion: Llama fields, tensors under Hugging Face names, and the files around them.

Knows NumPy and the dtypes of the safetensors format; reads no file itself and imports no ML library. A tensor is
never held whole here: it
comes as row blocks, in order, in a dtype that holds the source's values exactly (BF16 as uint16 bit patterns).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import CONFIG_BYTES_MAX, MemoryConfig, read_json
from ..errors import ConvertError, ModelFileError, TokenizerError
from ..tensorfile import Header, TensorInfo, from_float32, read_tensor, to_float32
from ..text.library import check_places, open_library

BLOCK_BYTES = 8 << 20
TEXT_BYTES_MAX = 64 << 20
FLOATS = ("F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class SourceTensor:
    """One tensor: its Hugging Face name, dtype code, shape, and `blocks`, which starts reading it as (rows, ...)
    pieces of that dtype. file: where it lies, if that is worth naming."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]
    file: Path | None = None


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    format: huggingface, gguf or released. files: what it was read from, weights first. llama: Hugging Face Llama
    config fields. config: the file they are from, where that is not the weights' own. index: the file that lists the tensors of several.
    memory: the checkpoint's own memory (released) or None for a bare backbone. generation: generation_config.json or
    None. tokenizer_config: what becomes the folder's tokenizer_config.json, the names of tokens. detail: what is worth recording of the format, and the licence. license_files: its text. notes: sentences the user should read.
    """

    format: str
    files: tuple[Path, ...]
    llama: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    memory: MemoryConfig | None = None
    tokenizer: bytes | None = None
    template: str | None = None
    tokenizer_config: Mapping[str, Any] | None = None
    generation: dict[str, Any] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    license_files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    config: Path | None = None
    index: Path | None = None

    @property
    def path(self) -> Path:
        """The file, or the folder, that the weights came from."""
        return self.files[0]

    @property
    def config_file(self) -> Path:
        """The file whose fields `llama` are."""
        return self.config or self.path

    @property
    def listing(self) -> Path:
        """The file that says which tensors there are."""
        return self.index or self.path

    def file_of(self, tensor: SourceTensor) -> Path:
        """The file that a tensor lies in."""
        return tensor.file or self.path


def stored_tensors(file: Path, header: Header) -> dict[str, SourceTensor]:
    """The tensors of a safetensors file with a checked header, each in one block."""
    return {name: SourceTensor(name, info.dtype, info.shape, partial(_read, file, info), file) for name, info in header.tensors.items()}


def _read(file: Path, info: TensorInfo) -> Iterator[np.ndarray]:
    with open(file, "rb") as f:
        yield read_tensor(f, info)


def whole(tensor: SourceTensor) -> np.ndarray:
    """All rows of a tensor in float32 (float64 stays), of the tensor's shape. For tensors that must be seen at once."""
    parts = [to_float32(block, tensor.dtype) if tensor.dtype != "F64" else block for block in tensor.blocks()]
    return np.concatenate([p.reshape(-1) for p in parts]).reshape(tensor.shape)


def cast(block: np.ndarray, have: str, want: str, name: str) -> np.ndarray:
    """A block as dtype `want`. Raises ConvertError, naming the tensor, for NaN or infinity in it or a value `want`
    cannot hold."""
    if not finite(block, have):
        raise ConvertError(f"tensor {name} holds NaN or infinity: the checkpoint is damaged; get it again from where it came from")
    if have == want:
        return block
    values = block if have == "F64" else to_float32(block, have)
    with np.errstate(over="ignore"):
        out = from_float32(values, want)
    if not finite(out, want):
        raise ConvertError(f"tensor {name} holds {float(np.abs(values).max()):.6g}, too large for {want}: use --dtype bfloat16 or float32")
    return out


def finite(block: np.ndarray, dtype: str) -> bool:
    """Whether every value of a block (BF16 as bit patterns) is a finite number."""
    if dtype == "BF16":
        return not bool(np.any((block & np.uint16(0x7F80)) == 0x7F80))
    return bool(np.isfinite(block).all())


def rows_per_block(shape: tuple[int, ...], item_bytes: int, multiple: int = 1) -> int:
    """How many rows of a tensor fit a block of about BLOCK_BYTES; a multiple of `multiple`, at least one of it."""
    row = int(np.prod(shape[1:], dtype=np.int64)) * item_bytes
    return max(1, BLOCK_BYTES // max(1, row * multiple)) * multiple


def same(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors hold the same values in the same shape and dtype, read side by side."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.blocks(), b.blocks(), strict=True))


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of a file's bytes; `progress` is told the bytes of each block."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def read_object(path: Path, limit: int = CONFIG_BYTES_MAX) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises ConvertError that names the file."""
    try:
        value = read_json(path, limit)
    except ModelFileError as error:
        raise ConvertError(str(error)) from None
    if not isinstance(value, dict):
        raise ConvertError(f"{path} must hold a JSON object, not {type(value).__name__}: restore the file")
    return value


def read_limited(path: Path, limit: int = TEXT_BYTES_MAX) -> bytes:
    """The bytes of a file of at most `limit` bytes. Raises ConvertError that names the file."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise ConvertError(f"{path} has {size} bytes, more than the {limit} allowed for a file of this kind")
        return path.read_bytes()
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {error.strerror or error}") from None


def check_tokenizer(data: bytes, path: Path, vocab_size: int) -> None:
    """Raise ConvertError unless `data` is a tokenizer.json whose ids all lie below `vocab_size`."""
    try:
        library = open_library(data, str(path), "restore the file")
        check_places(library, json.loads(data), str(path))
    except TokenizerError as error:
        raise ConvertError(str(error)) from None
    largest = max(library.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise ConvertError(f"{path} has token id {largest}, vocab_size is {vocab_size}: tokenizer and weights are not of one model")


def to_json(value: Any) -> bytes:
    """Readable JSON bytes with a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate, of a path, as JSON's own escape
