"""What of a data folder is not used, and why, for one line to a person. Knows counts and names; reads nothing."""

from collections.abc import Sequence
from pathlib import Path

NAMES = 3


class LeftOut:
    """Counts by reason. A reason has `{s}` where a plural has an s: `empty file{s}`."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._where: dict[str, dict[str, None]] = {}

    def add(self, reason: str, where: str | Path = "", count: int = 1) -> None:
        """`count` more things left out for `reason`. where: a file to be named."""
        if count:
            self._count[reason] = self._count.get(reason, 0) + count
            names = self._where.setdefault(reason, {})
            if where:
                names[where.name if isinstance(where, Path) else where] = None

    @property
    def total(self) -> int:
        """How many things, for all reasons."""
        return sum(self._count.values())

    def __bool__(self) -> bool:
        return bool(self._count)

    def __str__(self) -> str:
        """`2 empty files (a.txt, b.txt); 1 record without text (c.jsonl)`."""
        return "; ".join(
            f"{count:,} {reason.format(s='' if count == 1 else 's')}{_named(list(self._where[reason]))}"
            for reason, count in self._count.items()
        )


def _named(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f" ({', '.join(names[:NAMES])}{more})"
