"""Mutations, every one decided by the random generator it is given: of bytes, of JSON, of files packed into one input."""

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 1000, 4095, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
           2**40, 2**48, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**80]  # fmt: skip
TEXTS = ["", "0", "1", " ", "a", "x" * 300, "\x1b[2J", "\n", "\0", "é", "\U0001f600", "日本", "\u202e", "../x", "/etc/passwd", "C:\\x", "null", "NaN",
         "float16", "bfloat16", "float32", "llama", "lm2", "silu", "gelu", "default", "linear", "llama3", "yarn", "dynamic", "gated", "released",
         "F16", "BF16", "F32", "F64", "I32", "U8", "F8_E4M3", "BOOL"]  # fmt: skip
JUNK: list[Any] = [None, True, False, -1, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-30, 1e30, 1e308, [], [0], [1, 2], [-1], [None], [[]], {}, {"a": 1}, [{}], *NUMBERS, *TEXTS]
Mutator = Callable[[random.Random, bytes], bytes]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, cut, insert, double, swap, or write a telling number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(out)
        a = rng.randrange(size + 1)
        b = min(size, a + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(9)
        if kind == 0 and size:
            out[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[a:b] = rng.randbytes(b - a)
        elif kind == 2:
            del out[a:b]
        elif kind == 3:
            out[a:a] = rng.randbytes(rng.choice((1, 4, 8, 100)))
        elif kind == 4:
            at = rng.randrange(size + 1)
            out[at:at] = out[a:b]
        elif kind == 5:
            del out[a:]
        elif kind == 6:
            form = rng.choice(("<B", "<H", "<I", "<Q", ">I"))
            width = struct.calcsize(form)
            out[a : a + width] = struct.pack(form, rng.choice(NUMBERS) % (1 << 8 * width))
        elif kind == 7:
            out[a:b] = bytes(b - a)
        else:
            out += rng.randbytes(rng.choice((1, 8)))
    return bytes(out)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested JSON, as (container, key)."""
    out: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        x = stack.pop()
        pairs = list(x.items()) if isinstance(x, dict) else list(enumerate(x)) if isinstance(x, list) else []
        for key, below in pairs:
            out.append((x, key))
            stack.append(below)
    return out


def pick(rng: random.Random, tree: Any) -> tuple[Any, Any] | None:
    """A place in a tree, the places near its root as likely as the many deep ones."""
    all_spots = spots(tree)
    if not all_spots:
        return None
    return rng.choice(all_spots[: rng.choice((8, 40, len(all_spots)))])


def mutate_value(rng: random.Random, x: Any) -> Any:
    """Another value: near the old one, of another type, or junk."""
    if isinstance(x, bool):
        return rng.choice((not x, int(x), str(x), None))
    if isinstance(x, (int, float)) and rng.random() < 0.7:
        return rng.choice((x + 1, x - 1, -x, x * 2, x // 2 if isinstance(x, int) else x / 2, float(x) if abs(x) < 1e300 else 1.0, str(x), [x], x + 0.5))
    if isinstance(x, str) and rng.random() < 0.5:
        at = rng.randrange(len(x) + 1)
        return rng.choice((x + rng.choice(TEXTS), x[:at], x[:at] + rng.choice(TEXTS) + x[at:], x.upper(), x[::-1], [x]))
    if isinstance(x, list) and x and rng.random() < 0.7:
        y = list(x)
        i = rng.randrange(len(y))
        kind = rng.randrange(4)
        if kind == 0:
            y.insert(i, copy.deepcopy(y[i]))
        elif kind == 1:
            del y[i]
        elif kind == 2:
            rng.shuffle(y)
        else:
            y = y * 3
        return y
    return copy.deepcopy(rng.choice(JUNK))


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Change, remove, rename, swap or copy values of nested JSON, in place; returns the tree."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = pick(rng, tree)
        if found is None:
            return mutate_value(rng, tree)
        where, key = found
        kind = rng.randrange(8)
        if kind == 0:
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[rng.choice(TEXTS) if rng.random() < 0.5 else str(key) + rng.choice("x_ ")] = where.pop(key)
        elif kind == 2:
            other = pick(rng, tree)
            if other is not None:
                where[key] = copy.deepcopy(other[0].get(other[1]) if isinstance(other[0], dict) else other[0][other[1]])
        elif kind == 3 and rng.random() < 0.2:
            deep: Any = 0
            for _ in range(rng.choice((5, 40, 900))):
                deep = [deep]
            where[key] = deep
        else:
            where[key] = mutate_value(rng, where[key])
    return tree


def mutate_json(rng: random.Random, data: bytes, dumps: Callable[[Any], str] = json.dumps) -> bytes:
    """Nested values changed, or the text: a name twice, a number JSON has not, half of a surrogate pair, a mark in front."""
    try:
        tree = json.loads(data)
        text = dumps(mutate_tree(rng, tree)) if rng.random() < 0.85 else dumps(tree)
    except (ValueError, RecursionError, AttributeError):
        return mutate_bytes(rng, data)
    if rng.random() < 0.12:
        kind = rng.randrange(6)
        at = [i for i, c in enumerate(text) if c == "{"]
        if kind == 0 and at:
            i, key = rng.choice(at), rng.choice([str(k) for _, k in spots(tree)] or ["a"])
            text = text[: i + 1] + f"{json.dumps(key)}:{json.dumps(rng.choice(JUNK))}," + text[i + 1 :]
        elif kind == 1:
            text = text.replace(rng.choice("0123456789"), rng.choice(("NaN", "Infinity", "1e999", "-0", "9" * 5000, "1.0", "1e2")), 1)
        elif kind == 2:
            text = text.replace('"', '"\\ud800', 1)
        elif kind == 3:
            text = "\ufeff" + text
        elif kind == 4:
            text = text[: rng.randrange(len(text) + 1)]
        else:
            text += rng.choice(("x", " ", "\n", "{}", "\0"))
    return text.encode("utf-8", "surrogatepass")


def pack(files: Mapping[str, bytes]) -> bytes:
    """Several files as one input: a line of JSON with names and sizes, then their bytes."""
    head = json.dumps([[name, len(data)] for name, data in files.items()]).encode()
    return head + b"\n" + b"".join(files.values())


def unpack(data: bytes) -> dict[str, bytes]:
    """The files of `pack`. Raises ValueError for bytes that are none."""
    head, _, body = data.partition(b"\n")
    out, at = {}, 0
    for name, size in json.loads(head):
        if not isinstance(name, str) or not isinstance(size, int) or size < 0 or "/" in name or name.startswith("."):
            raise ValueError(name)
        out[name] = body[at : at + size]
        at += size
    return out


def mutate_packed(rng: random.Random, data: bytes, by_name: Mapping[str, Mutator], shares: Mapping[str, float]) -> bytes:
    """One or two of the packed files mutated, each by its own mutator; sometimes one is gone."""
    files = unpack(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        names = [n for n in files if n in shares]
        if not names:
            break
        name = rng.choices(names, [shares[n] for n in names])[0]
        if rng.random() < 0.02:
            del files[name]
        else:
            files[name] = by_name.get(name, mutate_bytes)(rng, files[name])
    return pack(files)


def mutate_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file: its header as JSON with the length put right, its values, or its bytes."""
    kind = rng.random()
    if kind < 0.25 or len(data) < 16:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    head, body = data[8 : 8 + length], data[8 + length :]
    if kind < 0.75:
        head = mutate_json(rng, head, lambda x: json.dumps(x, separators=(",", ":"), ensure_ascii=rng.random() < 0.5))
        if rng.random() < 0.7:
            head += b" " * (-len(head) % 8)
        if rng.random() < 0.1:
            length = max(0, len(head) + rng.choice((-8, -1, 1, 8)))
            return struct.pack("<Q", length) + head + body
    elif body:
        at = rng.randrange(len(body)) & ~3
        special = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0", b"\0\x7e\0\x7e", b"\0\x7c\0\xfc")
        body = body[:at] + rng.choice(special) + body[at + 4 :]
        if rng.random() < 0.2:
            body = mutate_bytes(rng, body)
    return struct.pack("<Q", len(head)) + head + body
