"""The fields that several endpoints share: messages, sampling, stop strings; and the Ask they make. Knows tables, no HTTP."""

from collections.abc import Mapping
from typing import Any

from ...models.errors import PromptError
from ...models.text.streaming import STOP_CHARS_MAX, STOPS_MAX, StopStrings
from ..session.sampling import SEED_MAX, Sampling
from .chain import Message
from .fields import Field, Kind, Table, choice, either, flag, listed, number, only, read, text, whole, wrong
from .refusal import Refusal, unsupported
from .turns import check_order, check_text

MESSAGES_MAX = 10_000
NO_TOOLS = "this model calls no tools"
NO_PENALTY = "not supported: use repetition_penalty"
LABEL = Field(text(512))

SAMPLING: Table = {
    "temperature": Field(number(0, 100)),
    "top_p": Field(number(0, 1)),
    "top_k": Field(whole(0, 1 << 30)),
    "min_p": Field(number(0, 1)),
    "repetition_penalty": Field(number(0.01, 100)),
}
SEED = Field(whole(0, SEED_MAX))
STOP = Field(either(text(STOP_CHARS_MAX, 1), listed(text(STOP_CHARS_MAX, 1), STOPS_MAX), list))
NEUTRAL: Table = {
    "frequency_penalty": Field(only((0,), NO_PENALTY)),
    "presence_penalty": Field(only((0,), NO_PENALTY)),
    "logit_bias": Field(only(({},), "not supported")),
    "n": Field(only((1,), "one answer at a time: send the request again with another seed")),
    "user": LABEL,
    "safety_identifier": LABEL,
    "prompt_cache_key": LABEL,
}
STREAM_OPTIONS: Table = {"include_usage": Field(flag(), False), "include_obfuscation": Field(only((False,), "not supported"))}


def content(types: tuple[str, ...]) -> Kind:
    """A message's content: text, or parts that are text, which are joined by newlines. types: what a part of text may call itself."""
    fields: Table = {"type": Field(choice(*types), need=True), "text": Field(text(), need=True), "annotations": Field(only(([],), "not read")),
                     "logprobs": Field(only(([],), "not read"))}  # fmt: skip

    def reads(value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not value:
            raise wrong(where, "text, or a list of parts of text", value)
        parts = []
        for i, part in enumerate(value):
            at = f"{where}[{i}]"
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in types:
                raise unsupported(f"{at}.type", f"{part['type'][:40]!a} is not supported: this model reads text alone")
            if not isinstance(part, dict):
                raise wrong(at, "a part of text", part)
            parts.append(read(part, fields, at + ".")["text"])
        return "\n".join(parts)

    part = {"type": "object", "properties": {"type": {"enum": list(types)}, "text": {"type": "string"}}, "required": ["type", "text"]}
    return Kind(reads, {"anyOf": [{"type": "string"}, {"type": "array", "items": part, "minItems": 1}]})


CHAT_MESSAGE: Table = {
    "role": Field(text(40), need=True),
    "content": Field(content(("text",)), need=True),
    "name": Field(only((), "not supported: say it in the content")),
    "refusal": Field(only((), "not supported")),
    "tool_calls": Field(only(([],), NO_TOOLS)),
    "function_call": Field(only((), NO_TOOLS)),
    "audio": Field(only((), "not supported: this model reads text alone")),
    "annotations": Field(only(([],), "not read")),
}


def messages_kind(fields: Table, roles: tuple[str, ...] = ("system", "developer", "user", "assistant"), least: int = 1) -> Kind:
    """A list of messages, read as [(role, text)]; role `developer` is `system`."""

    def one(value: Any, where: str) -> Message:
        if not isinstance(value, dict):
            raise wrong(where, "a message", value)
        role = value.get("role")
        if isinstance(role, str) and role not in roles:
            raise unsupported(f"{where}.role", f"{role[:40]!a} is not one of {', '.join(roles)}")
        d = read(value, fields, where + ".")
        role = "system" if d["role"] == "developer" else d["role"]
        return Message(role, check_text(d["content"], f"{where}.content", empty=role != "user", said=role == "assistant"))

    parts = {"role": {"enum": list(roles)}, "content": fields["content"].kind.schema}
    item = {"type": "object", "properties": parts, "required": ["role", "content"]}
    return listed(Kind(one, item), MESSAGES_MAX, least)


def split(messages: list[Message], where: str, ends: bool = True) -> tuple[str | None, tuple[Message, ...]]:
    """System prompt and the others. Raises Refusal for a system prompt that is not the first, two of them, an order that no conversation has, and (`ends`)
    where the last is not a user's."""
    system, rest = (messages[0].content or None, messages[1:]) if messages and messages[0].role == "system" else (None, messages)
    for i, message in enumerate(messages):
        if message.role == "system" and i:
            raise unsupported(f"{where}[{i}]", "a system message must be the first, and the only one")
    check_order(tuple(rest), where)
    if ends and (not rest or rest[-1].role != "user"):
        raise unsupported(where, "the last message must be a user's: this server answers, it does not go on with an answer")
    return system, tuple(rest)


def sampling_of(d: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings given. Raises Refusal naming a bad one."""
    given = {name: d[name] for name in SAMPLING if d.get(name) is not None}
    try:
        Sampling(**given)
    except PromptError as error:
        raise Refusal(400, str(error), str(error).split(" ", 1)[0], "invalid_value") from None
    return given


def stop_of(d: Mapping[str, Any]) -> tuple[str, ...]:
    """Stop strings given. Raises Refusal."""
    given = d.get("stop") or ()
    stops = (given,) if isinstance(given, str) else tuple(given)
    try:
        StopStrings(stops)
    except PromptError as error:
        raise Refusal(400, str(error), "stop", "invalid_value") from None
    return stops


def tokens_of(d: Mapping[str, Any], most: int, *names: str) -> int:
    """How long an answer may be: the first of `names` that is given, the server's limit where none is. Raises Refusal for more than the limit, and for two that differ."""
    given = {name: d[name] for name in names if d.get(name) is not None}
    if len(set(given.values())) > 1:
        raise Refusal(400, f"{' and '.join(given)} differ: give one", names[0], "invalid_value")
    for name, value in given.items():
        if value > most:
            raise Refusal(400, f"{name} {value} is more than the {most} tokens of an answer that this server gives (--max-tokens)", name, "invalid_value")
        return int(value)
    return most
