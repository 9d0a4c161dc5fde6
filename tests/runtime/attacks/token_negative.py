"""A token id of -1: an index from the end."""

import numpy as np
from forge import with_array

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_array(good, "snapshots.tokens", np.array([7, -1, 8], "<i4").tobytes())
