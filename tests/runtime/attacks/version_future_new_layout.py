"""A future version with arrays and keys unknown today: still told by its version."""

from forge import seal, split, with_meta

ERROR = "SessionVersionError"


def attack(good: bytes) -> bytes:
    header, arrays = split(with_meta(good, version="7", extra="1"))
    header["memory.codes"] = {"dtype": "F4_NEW", "shape": [1], "data_offsets": [0, 1]}
    return seal(header, arrays)
