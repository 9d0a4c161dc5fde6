"""An array that does not belong there."""

from forge import lay_out, seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["extra"] = {"dtype": "U8", "shape": [4], "data_offsets": []}
    arrays["extra"] = b"1234"
    lay_out(header, arrays)
    return seal(header, arrays)
