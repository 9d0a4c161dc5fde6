"""A model's weights: a good safetensors file that is no session."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    raw = b'{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}   '
    return len(raw).to_bytes(8, "little") + raw + bytes(8)
