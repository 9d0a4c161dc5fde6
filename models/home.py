"""Where models live on this machine: those shipped with the package, those pulled, and downloads. Knows the file system only."""

import os
from pathlib import Path

ENVIRONMENT = "LM2_HOME"


def home() -> Path:
    """The folder given by the environment variable LM2_HOME, else the platform's user cache folder for `lm2`. It may
    not exist yet."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("lm2", appauthor=False))


def models_folder() -> Path:
    """Where pulled models live, one folder each."""
    return home() / "models"


def downloads_folder() -> Path:
    """Where files being fetched live, and the verified GGUF files that are kept."""
    return home() / "downloads"


def shipped_folder() -> Path:
    """Where models that come with the package live, one folder each."""
    return Path(__file__).parent / "weights"


def shipped_model(name: str) -> Path | None:
    """The folder of a model that comes with the package and is complete, by its name; None for any other name."""
    folder = shipped_folder() / name
    if not name or Path(name).name != name:
        return None
    return folder if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file() else None
