"""A zip, as torch.save writes."""

import io
import zipfile

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", b"0" * 100)
    return out.getvalue()
