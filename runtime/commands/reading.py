"""Reading a file into a session's memory with a progress bar: `/read FILE` and `--context FILE`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .common import reading_bar

if TYPE_CHECKING:
    from ..session.session import Session

BYTES_A_TOKEN = 4  # a first guess, for the bar only


def read_file(session: "Session", path: Path, chat: bool, interrupted: Callable[[], bool], show: bool = True) -> tuple[int, bool]:
    """Feed a text file through the window into the memory, at constant memory. Returns (tokens, whether it was read to its end).

    `interrupted` is asked before each window: what was read until then is kept. Raises PromptError naming the file.
    """
    from ..session.reading import read_blocks

    total = path.stat().st_size if path.exists() else 0  # that it is not there is for read_blocks to say
    begun, ended, told = 0, 0, 0  # bytes before the block in hand and up to its end; tokens reported so far

    def blocks() -> Iterator[str]:
        nonlocal begun, ended
        for block, bytes_read in read_blocks(path):
            begun, ended = ended, bytes_read
            yield block

    with reading_bar(total, f"reading {path.name}", show) as bar:

        def progress(count: int) -> None:
            nonlocal begun, told
            per_token = begun / told if told and begun else BYTES_A_TOKEN
            begun, told = min(ended, begun + int((count - told) * per_token)), count
            bar(begun, count)

        tokens = session.read(blocks(), path.name, chat, interrupted, progress)
        return tokens, not interrupted()
