"""What the reliability harness shares: where the project is, a scratch folder in memory, what a good refusal looks like. Knows no format."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for _folder in (str(ROOT / "tests"), str(Path(__file__).parent)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Wrong(AssertionError):
    """Something that must never be: accepted and wrong, lost, half-written, or an error that tells nobody anything."""


def need(ok: bool, what: str) -> None:
    """Raise Wrong unless `ok`."""
    if not ok:
        raise Wrong(what)


def check_refusal(error: BaseException, *words: object) -> str:
    """The class of a typed error whose message is one line that has every word. Raises Wrong, or the error itself if it is not typed."""
    from lm2.models.errors import LM2Error

    if not isinstance(error, LM2Error):
        raise error
    text = str(error)
    need(0 < len(text) < 2000 and text.isprintable(), f"a message of {len(text)} characters: {text[:200]!r}")
    for word in words:
        need(str(word) in text, f"the message does not name {word}: {text[:300]!r}")
    return type(error).__name__


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed afterwards, in memory where the system has such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="lm2-reliability-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def arguments(text: str, names: list[str], count: str, default: int) -> argparse.ArgumentParser:
    """The parser that every script begins with: which ones, how many, and the seed."""
    parser = argparse.ArgumentParser(description=text.strip().splitlines()[0])
    parser.add_argument("names", nargs="+", choices=[*names, "all"], metavar="NAME", help=f"{', '.join(names)} or all")
    parser.add_argument(f"--{count}", type=int, default=default, dest="count", help="how many of each [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="decides every choice [%(default)s]")
    return parser


def chosen(given: list[str], names: list[str]) -> list[str]:
    return names if "all" in given else given


def equal(what: str, have: Any, want: Any) -> None:
    """Raise Wrong, showing both, unless they are equal."""
    need(have == want and type(have) is type(want), f"{what} is {str(have)[:200]}, it must be {str(want)[:200]}")
