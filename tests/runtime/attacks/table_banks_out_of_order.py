"""Two stored banks used in the other order: the same session would have two spellings."""

from forge import split, with_array, with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    two = split(good)[1]["snapshots.banks"] * 2
    more = with_array(good, "snapshots.banks", two, [2, 2, 1, 4, 8])
    return with_table(more, lambda t: t[0].update(bank=1))
