"""A pickle that would run code when loaded."""

import os
import pickle

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, ("pickle-was-run",))

    return pickle.dumps(Bomb(), protocol=2)
