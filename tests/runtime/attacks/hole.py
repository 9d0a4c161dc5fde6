"""A hole between two arrays."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    names = list(arrays)
    for name in names[1:]:
        header[name]["data_offsets"] = [at + 4 for at in header[name]["data_offsets"]]
    arrays[names[0]] += b"hole"
    return seal(header, arrays)
