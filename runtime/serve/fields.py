"""What a JSON object of a request may hold, as a table: read strictly, every fault by name, and told as a JSON schema from the same table.

A field that is not in the table is refused, one that has no effect here is accepted only at the value that asks for nothing. null is as if it were not
there. Knows JSON; no endpoint.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..statefile.text import no_constant, no_repeats
from .refusal import Refusal, unsupported

DEPTH_MAX = 32
DIGITS_MAX = 100
NAME_MAX = 64  # characters of an unknown name that its refusal repeats
Read = Callable[[Any, str], Any]


class Kind(NamedTuple):
    """read(value, where) gives what is meant, or raises Refusal naming `where`. schema: the same as JSON schema."""

    read: Read
    schema: dict[str, Any]


class Field(NamedTuple):
    """default: what is meant where the field is missing or null. need: it must be there."""

    kind: Kind
    default: Any = None
    need: bool = False


Table = Mapping[str, Field]


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request's body. Raises Refusal 400: not UTF-8, not JSON, not an object, a name twice, NaN, too deep."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not valid UTF-8 at byte {error.start}", code="invalid_utf8") from None
    try:
        found = json.loads(text, object_pairs_hook=no_repeats, parse_constant=no_constant, parse_int=_short) if text.strip() else {}
        _check_depth(found)
    except ValueError as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise Refusal(400, f"the body is not valid JSON: more than {DEPTH_MAX} levels deep", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    return found


def read(d: Mapping[str, Any], table: Table, where: str = "") -> dict[str, Any]:
    """The fields of an object by the table; each name of the table is in the result. Raises Refusal naming the field."""
    for name in d:
        if name not in table:
            full = where + (name if len(name) <= NAME_MAX else name[: NAME_MAX - 3] + "...")
            raise Refusal(400, f"{full}: this server does not know the field", full, "unknown_parameter")
    out = {}
    for name, field in table.items():
        value = d.get(name)
        if value is None:
            if field.need:
                raise Refusal(400, f"{where}{name} is missing", where + name, "missing_parameter")
            out[name] = field.default
        else:
            out[name] = field.kind.read(value, where + name)
    return out


def schema(table: Table) -> dict[str, Any]:
    """The table as a JSON schema."""
    properties = {n: (f.kind.schema if f.need else {"anyOf": [f.kind.schema, {"type": "null"}]}) for n, f in table.items()}
    out: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    needed = [n for n, f in table.items() if f.need]
    return out | ({"required": needed} if needed else {})


def wrong(where: str, what: str, value: Any) -> Refusal:
    """The refusal of a value."""
    shown = ""
    for part in json.JSONEncoder(default=str).iterencode(value[:60] if isinstance(value, str) else value):  # a large one is not written whole
        shown += part
        if len(shown) > 60:
            break
    return Refusal(400, f"{where} must be {what}, not {shown if len(shown) <= 60 else shown[:57] + '...'}", where, "invalid_value")


def text(most: int = 1 << 20, least: int = 0) -> Kind:
    def reads(value: Any, where: str) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise wrong(where, f"text of {least} to {most} characters", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refusal(400, f"{where} holds half of a surrogate pair: it is not text", where, "invalid_value") from None
        return value

    return Kind(reads, {"type": "string", "minLength": least, "maxLength": most})


def flag() -> Kind:
    def reads(value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise wrong(where, "true or false", value)
        return value

    return Kind(reads, {"type": "boolean"})


def whole(least: int, most: int) -> Kind:
    def reads(value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(where, f"a whole number from {least} to {most}", value)
        return value

    return Kind(reads, {"type": "integer", "minimum": least, "maximum": most})


def number(least: float, most: float) -> Kind:
    def reads(value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:  # NaN is not between any
            raise wrong(where, f"a number from {least:g} to {most:g}", value)
        return float(value)

    return Kind(reads, {"type": "number", "minimum": least, "maximum": most})


def choice(*values: str) -> Kind:
    def reads(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in values:
            raise wrong(where, f"one of {', '.join(values)}", value)
        return value

    return Kind(reads, {"enum": list(values)})


def only(values: Sequence[Any], why: str) -> Kind:
    """A field of other servers that is accepted where it asks for nothing that is not done."""

    def reads(value: Any, where: str) -> Any:
        if not any((type(value) is type(v) and value == v) or (_number(value) and _number(v) and value == v) for v in values):
            raise unsupported(where, why)
        return value

    return Kind(reads, {"enum": list(values)} if values else {"type": "null"})


def listed(kind: Kind, most: int, least: int = 0) -> Kind:
    def reads(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise wrong(where, f"a list of {least} to {most}", value)
        return [kind.read(x, f"{where}[{i}]") for i, x in enumerate(value)]

    return Kind(reads, {"type": "array", "items": kind.schema, "minItems": least, "maxItems": most})


def table(fields: Table) -> Kind:
    def reads(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(where, "a JSON object", value)
        return read(value, fields, where + ".")

    return Kind(reads, schema(fields))


def labels() -> Kind:
    """OpenAI's metadata: at most 16 short texts by name."""

    def reads(value: Any, where: str) -> dict[str, str]:
        if not isinstance(value, dict) or len(value) > 16:
            raise wrong(where, "an object of at most 16 texts", value)
        for key, said in value.items():
            text(64, 1).read(key, f"{where}: the name {key[:20]!a}")
            text(512).read(said, f"{where}.{key}")
        return value

    entries = {"type": "string", "maxLength": 512}
    return Kind(reads, {"type": "object", "maxProperties": 16, "additionalProperties": entries, "propertyNames": {"minLength": 1, "maxLength": 64}})


def either(one: Kind, other: Kind, is_other: type) -> Kind:
    """`other` for values of Python type `is_other`, else `one`."""
    return Kind(lambda value, where: (other if isinstance(value, is_other) else one).read(value, where), {"anyOf": [one.schema, other.schema]})


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number of more than {DIGITS_MAX} digits")
    return int(digits)


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEPTH_MAX):
        level = [y for x in level if isinstance(x, (dict, list)) for y in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return
    raise ValueError(f"more than {DEPTH_MAX} levels deep")
