"""An array named twice: readers differ in which they take."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t[:-1] + ',"chunk.tokens":{"dtype":"I32","shape":[0],"data_offsets":[0,0]}}')
