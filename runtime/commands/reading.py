"""Reading a file into a session's memory with a progress bar: `/read FILE` and `--context FILE`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .common import reading_bar, soft_interrupt

if TYPE_CHECKING:
    from ..session import Session


def read_file(session: "Session", path: Path, chat: bool, show: bool = True) -> tuple[int, bool]:
    """Feed a text file through the memory, chunk by chunk, at constant memory. Returns (tokens, whether it was read to its end).

    Ctrl-C stops after the chunk in hand and keeps what was read. Raises PromptError naming the file.
    """
    from ...models.errors import PromptError
    from ..reading import read_blocks

    try:
        total = path.stat().st_size
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from None
    done = 0

    def blocks() -> Iterator[str]:
        nonlocal done
        for block, bytes_read in read_blocks(path):
            yield block
            done = bytes_read

    with reading_bar(total, f"reading {path.name}", show) as bar, soft_interrupt() as interrupted:
        tokens = session.read(blocks(), path.name, chat, interrupted, lambda count: bar(done, count))
        return tokens, not interrupted()
