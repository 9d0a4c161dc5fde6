"""One NaN in the bank, digests right."""

import numpy as np
from forge import split, with_array

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    bank = np.frombuffer(split(good)[1]["memory.bank"], "<f4").copy()
    bank[37] = np.nan
    return with_array(good, "memory.bank", bank.tobytes())
