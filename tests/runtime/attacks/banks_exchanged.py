"""The arrays of another session behind this one's header."""

from forge import split

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    arrays = split(good)[1]
    a, b = arrays["memory.bank"], arrays["snapshots.banks"]
    return good.replace(a + arrays["chunk.tokens"] + b, b + arrays["chunk.tokens"] + a)
