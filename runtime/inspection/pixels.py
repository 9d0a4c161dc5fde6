"""An array of numbers as a PNG, one pixel a number. Knows zlib and the PNG format's three chunks; no drawing library."""

import base64
import struct
import zlib

import numpy as np

EMPTY = (236, 236, 236)
WHITE = (255, 255, 255)
BLUE, GREEN, ORANGE, RED = (17, 75, 148), (20, 110, 60), (186, 92, 6), (160, 16, 36)


def png(values: np.ndarray, low: float, high: float, color: tuple[int, int, int]) -> bytes:
    """values (rows, columns) as pixels from white (`low`) to `color` (`high`); NaN is grey. At least one row and column."""
    if values.ndim != 2 or not values.size:
        raise ValueError(f"an image needs rows and columns, not shape {values.shape}")
    share = np.clip((np.nan_to_num(values, nan=low) - low) / ((high - low) or 1.0), 0.0, 1.0)[..., None]  # (rows, columns, 1)
    pixels = np.rint(np.array(WHITE) * (1 - share) + np.array(color) * share).astype(np.uint8)  # (rows, columns, 3)
    pixels[np.isnan(values)] = EMPTY
    height, width = values.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # each line begins with filter 0
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    )


def data_uri(image: bytes) -> str:
    """A PNG as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
