"""An array is missing."""

from forge import lay_out, seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    del header["chunk.tokens"], arrays["chunk.tokens"]
    lay_out(header, arrays)
    return seal(header, arrays)
