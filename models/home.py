"""Where pulled models and downloads live on this machine. Knows the file system only."""

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
