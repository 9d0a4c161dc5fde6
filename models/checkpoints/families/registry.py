"""All families by their model_type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConvertError
from .ernie4_5 import ERNIE4_5
from .family import Family
from .granite import GRANITE
from .helium import HELIUM
from .llama import LLAMA
from .mistral import MISTRAL
from .phi3 import PHI3
from .qwen2 import QWEN2
from .seed_oss import SEED_OSS

FAMILIES: Mapping[str, Family] = {f.model_type: f for f in (LLAMA, MISTRAL, QWEN2, SEED_OSS, PHI3, GRANITE, ERNIE4_5, HELIUM)}


def family_of(config: Mapping[str, Any], file: Path) -> Family:
    """The family that a config.json says its model is of. Raises ConvertError naming the file, the type and those that can be converted."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConvertError(f"{file}: model_type {kind!r} is not supported: lm2 converts models of type {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]
