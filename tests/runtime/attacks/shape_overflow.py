"""A shape whose product wraps to 0 in 64 bits."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["snapshots.banks"] |= {"shape": [1 << 32, 1 << 32, 1, 4, 8], "data_offsets": [0, 0]}
    return seal(header, arrays)
