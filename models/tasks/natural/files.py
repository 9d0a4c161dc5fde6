"""Where the package's own texts lie. Knows names of files, not what is in them."""

from pathlib import Path

from .errors import CorpusError

FOLDER = Path(__file__).parent / "data"


def data_file(name: str) -> Path:
    """A file of the package. Raises CorpusError where the installation lacks it."""
    path = FOLDER / name
    if not path.is_file():
        raise CorpusError(f"{path} is missing: install the package again")
    return path


def lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of what is neither blank nor a comment (#). Raises CorpusError for a file that cannot be read as UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 (byte {error.start}): convert it") from None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
