"""Opening a model by name or folder: weights in a backend, tokenizer, chat template, sampling defaults. Knows no conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.checkpoints.adapter import folder_key
from ..models.checkpoints.progress import Report, silent
from ..models.config import LM2Config, read_json
from ..models.errors import BackendError, ModelFileError, PromptError, TokenizerError
from ..models.generation import read_ends
from ..models.home import shipped_model
from ..models.layout import GENERATION, TOKENIZER, ModelFolder, open_folder
from ..models.oserrors import shown
from ..models.recall import RECORD as RECALL
from ..models.recall import Recall, open_recall
from ..models.text.dialogue import PlainTemplate, Template
from ..models.text.template import ChatTemplate
from ..models.text.tokenizer import Tokenizer
from .backend import Backend, BackendOptions, open_backend
from .session.sampling import Sampling

DEFAULT_MODEL = "smollm2"
OFFLINE_MODEL = "lm2-tiny"
WINDOW = 2048


@dataclass(frozen=True)
class Model:
    """A loaded model. tokenizer is None when the folder has none, and template with it; a folder without a chat template has a plain one.
    eos: ids that end an answer. recall: with what messages that ask for something told are answered, if there is any."""

    path: Path
    config: LM2Config
    fingerprint: str
    backend: Backend
    tokenizer: Tokenizer | None
    template: Template | None
    sampling: Sampling
    eos: frozenset[int]
    recall: Recall | None = None

    @property
    def name(self) -> str:
        return self.config.name or shown(self.path.name)

    @property
    def remembers(self) -> bool:
        """Whether it has a memory: what leaves a window is gone otherwise."""
        return bool(self.config.memory.layers)

    @property
    def window(self) -> int:
        """Tokens that a session keeps word for word by default: what the config says; for a memory trained in windows of its chunk, the chunk."""
        memory = self.config.memory
        if memory.window is not None:
            return memory.window
        return memory.chunk if memory.cell == "released" or memory.trained else min(WINDOW, self.config.max_position_embeddings)

    @property
    def text(self) -> Tokenizer:
        """The tokenizer. Raises TokenizerError when the folder has none."""
        if self.tokenizer is None:
            raise TokenizerError(f"{self.path} has no {TOKENIZER}: copy the one the model was trained with into the folder")
        return self.tokenizer

    @property
    def end_of_turn(self) -> str:
        """The text of the tokenizer's own end-of-sequence token, else of the first one, or nothing."""
        own = self.tokenizer.named.names.get("eos_token") if self.tokenizer else None
        if own:
            return own
        return self.tokenizer.token(min(self.eos)) if self.tokenizer and self.eos else ""

    def encode(self, text: str, add_special: bool = False, plain: bool = False) -> list[int]:
        """Ids of a text, each below the model's vocabulary. `plain`: special tokens spelled out in the text stay ordinary text."""
        ids: list[int] = list(self.text.encode(text, add_special=add_special, plain=plain))
        return self.check_ids(ids)

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """Raise PromptError for an id the model does not have."""
        worst = max(ids, default=0)
        if worst >= self.config.vocab_size or min(ids, default=0) < 0:
            raise PromptError(
                f"token id {worst} is outside the model's vocabulary of {self.config.vocab_size}: the tokenizer is not this model's"
            )
        return list(ids)


def find_model(model: str | Path, report: Report = silent) -> Path:
    """The folder of a model given as a path, as the name of one that comes with the package (`lm2-tiny`), or as one from the
    catalogue, which is pulled once if it is not here.

    Of a name and something called so in the working folder the name is meant, unless that is a model folder of lm2 (`catalog.is_name`).
    A path that is not there is returned as it is: opening it says so. Raises DownloadError when a model cannot be fetched, and ModelFileError
    for the name of a backbone alone (`smollm2-bare`), which has no folder of its own: `load` and --no-memory open it.
    """
    from ..models.checkpoints import catalog
    from ..models.checkpoints.pull import pull

    if not isinstance(model, str) or not catalog.is_name(model):
        return Path(model)
    if model in catalog.BARE:
        raise ModelFileError(f"{model} is {catalog.BARE[model]} without its memory and has no folder of its own: give {catalog.BARE[model]}")
    return shipped_model(model) or catalog.resolve(model) or pull(model, report=report)


def load(
    model: str | Path = DEFAULT_MODEL,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    report: Report = silent,
    memory: bool = True,
) -> Model:
    """Load a model folder, or a catalogue name such as `smollm2` (pulled once). `report` hears of the pull. `memory` False, or `smollm2-bare`: the
    backbone alone.

    Raises ModelFileError, ConfigError, BackendError, TokenizerError or DownloadError, each one line that names the file and the remedy.
    """
    from ..models.checkpoints import catalog

    if isinstance(model, str) and model in catalog.BARE and catalog.is_name(model):
        model, memory = catalog.BARE[model], False
    path = find_model(model, report)
    folder = open_folder(path, quantized=True, exported=True)  # the backend says whether it can compute with what is in it
    if folder.export is not None and backend == "auto":
        backend = "onnx"
    if not memory and folder.export is None:
        folder = folder.without_memory()
    elif not memory and folder.config.memory.layers:
        raise BackendError(f"{path} is an ONNX model with its memory inside, and cannot leave it out: export it anew with `lm2 export MODEL DST --no-memory`")
    opened = open_backend(backend, path, BackendOptions(device, dtype, threads, report, memory))
    tokenizer = Tokenizer.load(path) if (path / TOKENIZER).exists() else None
    template = (ChatTemplate.load(path, tokenizer) or PlainTemplate(tokenizer.begin)) if tokenizer else None
    sampling, ends = read_generation(path / GENERATION, folder.config.vocab_size)
    eos = frozenset(folder.config.eos_token_id) | ends | (tokenizer.ends() if tokenizer else frozenset())
    recall = find_recall(folder) if memory and folder.config.memory.layers and tokenizer is not None else None
    return Model(path, opened.config, folder.fingerprint, opened, tokenizer, template, sampling, eos, recall)


def find_recall(folder: ModelFolder) -> Recall | None:
    """The recall in a model's folder, else the one that comes with the package for a model of the catalogue; None where there is none.

    Raises ModelFileError for one that does not fit the model, or was trained on another backbone.
    """
    from ..models.checkpoints.recalls import place_of

    place = place_of(folder.path)
    if place is None or folder.config.memory.cell != "gated":
        return None
    recall = open_recall(place, folder.config)
    if folder.export is None and folder.quantization is None:
        have = folder_key(folder)
        if have != recall.backbone[1]:
            raise ModelFileError(
                f"{place / RECALL} was trained on {recall.backbone[0]} (backbone {recall.backbone[1][:12]}), {folder.path} has another (backbone {have[:12]}): "
                "take the file away, or train one for this model"
            )
    return recall


def read_generation(file: Path, vocab_size: int) -> tuple[Sampling, frozenset[int]]:
    """Sampling defaults and end tokens of a generation_config.json; the defaults and none if there is no such file.

    Raises ModelFileError naming the file and the field.
    """
    if not file.exists():
        return Sampling(), frozenset()
    settings: Any = read_json(file)
    if not isinstance(settings, dict):
        raise ModelFileError(f"{file} must be a JSON object, not {type(settings).__name__}: correct the file or remove it")
    try:
        return Sampling.from_generation_config(settings), read_ends(settings, vocab_size)
    except PromptError as error:
        raise ModelFileError(f"{file}: {str(error).removeprefix(f'{GENERATION}: ')}: correct the file or remove it") from None
