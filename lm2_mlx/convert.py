"""`lm2 convert SRC DST --mlx`: whatever can be converted, as a folder packed for MLX.

Knows which way a source takes: a model folder is rounded, a GGUF keeps its own numbers, any other checkpoint becomes a model first (in a
temporary folder beside the destination) and is then rounded. The plain model's fingerprint is what sessions are bound to in each case.
"""

from pathlib import Path
from typing import Any

from ..models.atomic import check_new_folder, folder_name, scratch_folder
from ..models.checkpoints.convert import convert
from ..models.checkpoints.progress import Counter, Report, silent
from ..models.checkpoints.warmstart import MemoryRequest
from ..models.config import read_json
from ..models.errors import ConvertError
from ..models.layout import CONFIG, WEIGHTS
from ..models.oserrors import shown
from .quantize import quantize_folder
from .repack import quantised_matrices, repack_gguf

BITS, GROUP_SIZE = 4, 64


def convert_mlx(
    src: Path,
    dst: Path,
    request: MemoryRequest = MemoryRequest(),
    *,
    bits: int | None = None,
    group_size: int | None = None,
    dtype: str = "auto",
    config: Path | None = None,
    name: str | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Make the new packed folder `dst`. bits, group_size: default 4 and 64; a GGUF brings its own. The rest is `convert`'s.

    Returns quantize_folder's summary with the notes of the conversion. Raises ConvertError (an option that does not go with the source, or as
    quantize_folder and repack_gguf do), ConfigError, ModelFileError or WriteError; `dst` does not exist then.
    """
    check_new_folder(dst)
    name = shown(name) if name else folder_name(dst)
    if is_model(src):
        if request != MemoryRequest() or dtype != "auto" or config is not None:
            raise ConvertError(f"{src} is a model already: with --mlx only --bits, --group-size and --name can be given")
        counter = Counter(report, "packing", (src / WEIGHTS).stat().st_size)
        return quantize_folder(src, dst, bits or BITS, group_size or GROUP_SIZE, counter.add, name) | {"notes": []}
    gguf = src.is_file() and src.suffix not in (".pth", ".pt", ".safetensors")
    if gguf:
        for option, value, keep in (("--bits", bits, None), ("--group-size", group_size, None), ("--dtype", dtype, "auto")):
            if value != keep:
                raise ConvertError(
                    f"{option} {value} cannot be used with {src}: a GGUF keeps its own numbers; leave it out, or make a model folder first"
                )
        quantised_matrices(src)
    with scratch_folder(dst) as folder:
        plain = Path(folder) / "plain"
        notes = convert(src, plain, request, dtype=dtype, config=config, name=name, report=report)["notes"]
        counter = Counter(report, "packing", (plain / WEIGHTS).stat().st_size)
        if gguf:
            return repack_gguf(src, plain, dst, counter.add, name) | {"notes": notes}
        return quantize_folder(plain, dst, bits or BITS, group_size or GROUP_SIZE, counter.add, name) | {"notes": notes}


def is_model(path: Path) -> bool:
    """Whether `path` is a folder of this project's own kind. Raises ModelFileError for a config.json that is no JSON."""
    if not (path / CONFIG).is_file():
        return False
    d = read_json(path / CONFIG)
    return isinstance(d, dict) and "memory" in d and d.get("model_type") == "lm2"
