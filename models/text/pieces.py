"""What one token is in bytes, read from a tokenizer.json's `decoder`. Knows no vocabulary and no library.

A text is then the bytes of its tokens, one after the other, read as UTF-8: that is what lets it be streamed with a
fixed amount of work per token. Covers the two families Llamas use, byte-level BPE and SentencePiece with or without
byte fallback; others are refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import TokenizerError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Pieces:
    """How a token string becomes bytes, and what is dropped from the start of a text.

    byte_level: each character stands for one byte (GPT-2). replace: (old, new) pairs. byte_fallback: `<0x41>` is the
    byte 0x41. strip: (character, how many) dropped from the start of the text. first_drops: character dropped from
    all of the first token.
    """

    byte_level: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: tuple[str, int] = ("", 0)
    first_drops: str = ""

    def piece(self, token: str, added: bool, first: bool = False) -> bytes:
        """Bytes of a token string. `added`: it is not of the model's own vocabulary, so its characters are text, never bytes."""
        if self.byte_level:
            if not added:
                try:
                    return bytes(_FROM_CHARACTER[c] for c in token)
                except KeyError:
                    pass
            return token.encode("utf-8")
        if first and self.first_drops:
            token = token.replace(self.first_drops, "")
        for old, new in self.replace:
            token = token.replace(old, new)
        if self.byte_fallback and (found := _BYTE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return token.encode("utf-8")


def read_decoder(spec: Any) -> Pieces:
    """The `decoder` block of a tokenizer.json. Raises TokenizerError (without a file name) for a kind this version does not know."""
    steps: Any = spec.get("decoders") if isinstance(spec, Mapping) and spec.get("type") == "Sequence" else [spec]
    try:
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return Pieces(byte_level=True)
        if kinds == ["ByteLevel", "Strip"] and steps[1]["stop"] == 0:
            return Pieces(byte_level=True, strip=(steps[1]["content"], steps[1]["start"]))
        replace: list[tuple[str, str]] = []
        fallback, strip, first_drops = False, ("", 0), ""
        if not _in_order(kinds):
            raise ValueError
        for step, kind in zip(steps, kinds, strict=True):
            if kind == "Replace":
                replace.append((step["pattern"]["String"], step["content"]))
            elif kind == "Metaspace":
                replace.append((step["replacement"], " "))
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                first_drops = "" if scheme == "never" else step["replacement"]
            elif kind == "ByteFallback":
                fallback = True
            elif kind == "Strip":
                if step["stop"] != 0:
                    raise ValueError
                strip = (step["content"], step["start"])
        return Pieces(False, tuple(replace), fallback, strip, first_drops)
    except (KeyError, TypeError, ValueError, AttributeError):
        said = str(spec) if len(str(spec)) < 200 else str(spec)[:200] + "..."
        raise TokenizerError(
            f"decoder {said} is not supported: it must be ByteLevel (then Strip), Metaspace, or a Sequence of Replace, "
            "ByteFallback, Fuse, Strip (the kinds Llama models use)"
        ) from None


def _in_order(kinds: list[str]) -> bool:
    """Whether the steps are ones whose result can be told token by token: whole-text steps only at the end."""
    names = {"Replace": "r", "Metaspace": "m", "ByteFallback": "b", "Fuse": "f", "Strip": "s"}
    return re.fullmatch(r"(r+|m)b?(fs?)?", "".join(names.get(k, "?") for k in kinds)) is not None


def _characters() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 stands for itself, the other bytes for U+0100 onward, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return table | {chr(0x100 + i): b for i, b in enumerate(others)}


_FROM_CHARACTER = _characters()
