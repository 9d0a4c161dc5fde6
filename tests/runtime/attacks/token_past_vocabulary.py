"""A token id equal to the vocabulary's size."""

import numpy as np
from forge import with_array

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_array(good, "chunk.tokens", np.array([1, 50, 3], "<i4").tobytes())
