"""Whether a terminal is to be written to plainly: no colors, no escape codes, nothing drawn in place. Knows the environment, no command."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plain() -> bool:
    """NO_COLOR is set to anything but nothing, or TERM is dumb."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def lively() -> bool:
    """Whether progress may be drawn in place on stderr: a terminal that is not to be plain."""
    return sys.stderr.isatty() and not plain()


def console(stderr: bool = False) -> "Console":
    """A rich console for tables on stdout, or for progress on stderr. Without escape codes where it is to be plain, whatever else is set."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    wide = stream.isatty()
    how: dict[str, Any] = {"force_terminal": False, "color_system": None, "no_color": True} if plain() else {}
    return Console(stderr=stderr, highlight=False, soft_wrap=not wide, width=None if wide else 160, **how)
