"""All families by their model_type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConvertError
from .ernie4_5 import ERNIE4_5
from .exaone4 import EXAONE4
from .family import Family
from .gemma import GEMMA
from .gemma3 import GEMMA3
from .glm import GLM
from .glm4 import GLM4
from .granite import GRANITE
from .helium import HELIUM
from .hyperclovax import HYPERCLOVAX
from .llama import LLAMA
from .mistral import MISTRAL
from .olmo2 import OLMO2
from .olmo3 import OLMO3
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .seed_oss import SEED_OSS
from .smollm3 import SMOLLM3

_ALL = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, PHI3, SEED_OSS, ERNIE4_5, HELIUM, OLMO2, OLMO3, EXAONE4, GEMMA, GEMMA3, GLM, GLM4, HYPERCLOVAX)
FAMILIES: Mapping[str, Family] = {f.model_type: f for f in _ALL}


def family_of(config: Mapping[str, Any], file: Path) -> Family:
    """The family that a config.json says its model is of. Raises ConvertError naming the file, the type and those that can be converted."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    inner = config.get("text_config")
    own = inner.get("model_type") if isinstance(inner, Mapping) else None
    if isinstance(own, str) and own in FAMILIES:
        raise ConvertError(f"{file}: model_type {kind!r} is not supported: of such a model lm2 converts text_config's alone, {own}: save that as a model of its own")
    raise ConvertError(f"{file}: model_type {kind!r} is not supported: lm2 converts models of type {', '.join(sorted(FAMILIES))}; give one of these")
