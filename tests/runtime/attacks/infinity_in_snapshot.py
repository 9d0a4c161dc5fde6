"""One infinity in a snapshot's bank, digests right."""

import numpy as np
from forge import split, with_array

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    banks = np.frombuffer(split(good)[1]["snapshots.banks"], "<f4").copy()
    banks[-1] = -np.inf
    return with_array(good, "snapshots.banks", banks.tobytes())
