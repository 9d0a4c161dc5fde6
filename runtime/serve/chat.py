"""/v1/chat/completions and /v1/completions: OpenAI's fields in, OpenAI's objects out. Knows HTTP and an Ask; turns.py answers it."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import asking
from .asking import CHAT_MESSAGE, NEUTRAL, NO_TOOLS, SAMPLING, SEED, STOP, STREAM_OPTIONS
from .fields import Field, Table, either, flag, listed, only, table, text, whole
from .http import Events, event, finished, json_body, owner_of, service_of, told_of
from .http import whole as uncut
from .logprobs import TOP_MAX
from .refusal import Refusal, unsupported
from .service import named, new_id
from .turns import Ask, Outcome, Piece, check_text

MODEL = Field(text(200))
FORMAT: Table = {"type": Field(only(("text",), "only text: this server forces no format"), need=True)}

CHAT: Table = {
    "model": MODEL,
    "messages": Field(asking.messages_kind(CHAT_MESSAGE), need=True),
    "session_id": Field(text(100)),
    "max_tokens": Field(whole(1, 1 << 31)),
    "max_completion_tokens": Field(whole(1, 1 << 31)),
    "stream": Field(flag(), False),
    "stream_options": Field(table(STREAM_OPTIONS)),
    "stop": STOP,
    "seed": SEED,
    "logprobs": Field(flag(), False),
    "top_logprobs": Field(whole(0, TOP_MAX)),
    "response_format": Field(table(FORMAT)),
    "tools": Field(only(([],), NO_TOOLS)),
    "tool_choice": Field(only(("none",), NO_TOOLS)),
    "parallel_tool_calls": Field(flag()),
    "functions": Field(only(([],), NO_TOOLS)),
    "function_call": Field(only(("none",), NO_TOOLS)),
    "modalities": Field(only((["text"],), "this model writes text alone")),
    "audio": Field(only((), "this model writes text alone")),
    "prediction": Field(only((), "not supported")),
    "reasoning_effort": Field(only(("none",), "this model does not reason before it answers")),
    "verbosity": Field(only((), "not supported")),
    "web_search_options": Field(only((), NO_TOOLS)),
    "service_tier": Field(only(("auto", "default"), "not supported")),
    "store": Field(only((False,), "not supported: use /v1/responses")),
    "metadata": Field(only(({},), "not supported: use /v1/responses")),
    **SAMPLING,
    **NEUTRAL,
}

COMPLETION: Table = {
    "model": MODEL,
    "prompt": Field(either(text(), listed(text(), 1, 1), list), need=True),
    "max_tokens": Field(whole(1, 1 << 31)),
    "stream": Field(flag(), False),
    "stream_options": Field(table(STREAM_OPTIONS)),
    "stop": STOP,
    "seed": SEED,
    "best_of": Field(only((1,), "one completion at a time")),
    "echo": Field(only((False,), "not supported")),
    "suffix": Field(only(("",), "not supported")),
    "logprobs": Field(whole(0, TOP_MAX)),
    **SAMPLING,
    **NEUTRAL,
}


async def chat(request: Request) -> Response:
    """Answer the last message of a transcript, or one message in a named session."""
    service, owner = service_of(request), owner_of(request)
    d = await json_body(request, CHAT)
    service.check_model(d["model"])
    ask = chat_ask(d, owner, service.limits.tokens)
    given = session_of(request, d["session_id"])
    if given is None:
        ticket = service.scheduler.submit(lambda t: service.turns.transcript(ask, t))
    else:
        if ask.history or ask.system is not None:
            raise unsupported("messages", "with a session send the new message alone: the session has heard the others, and has its own system prompt")
        name = named("session", owner, given)
        ticket = service.scheduler.submit(lambda t: service.within(name, ask, t), name)
    about = _about(service.model.name, service.model.fingerprint, "chatcmpl")
    usage = _usage_asked(d)
    if d["stream"]:
        return Events(ticket, ChatVoice(about, usage, ask.top is not None), service.limits.ping, service.hide)
    outcome = uncut(await finished(request, ticket))
    message: dict[str, Any] = {"role": "assistant", "content": outcome.text, "refusal": None, "annotations": []}
    told = None if ask.top is None else {"content": outcome.logprobs, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": told, "finish_reason": outcome.finish}
    body = {**about, "object": "chat.completion", "choices": [choice], "usage": usage_of(outcome)}
    return JSONResponse(body, headers=told_of(outcome.began))


def chat_ask(d: dict[str, Any], owner: str, most: int) -> Ask:
    """The Ask of a chat completion's fields. Raises Refusal."""
    system, messages = asking.split(d["messages"], "messages")
    if d["top_logprobs"] is not None and not d["logprobs"]:
        raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    return Ask(
        owner,
        messages[-1].content,
        messages[:-1],
        system,
        asking.sampling_of(d),
        d["seed"],
        asking.tokens_of(d, most, "max_completion_tokens", "max_tokens"),
        asking.stop_of(d),
        (d["top_logprobs"] or 0) if d["logprobs"] else None,
    )


def session_of(request: Request, given: str | None) -> str | None:
    """The session named in the header `x-session-id` or the body. Raises Refusal where the two differ."""
    header = request.headers.get("x-session-id") or None
    if header is not None and given is not None and header != given:
        raise Refusal(400, "session_id and the header x-session-id differ: give one", "session_id", "invalid_value")
    return header or given


def no_session(request: Request) -> None:
    """Raise Refusal for the header of a session on a path that has none."""
    if request.headers.get("x-session-id"):
        raise unsupported("x-session-id", "only chat completions go on in a session")


async def completion(request: Request) -> Response:
    """Continue a plain text."""
    service = service_of(request)
    no_session(request)
    d = await json_body(request, COMPLETION)
    service.check_model(d["model"])
    prompt = check_text(d["prompt"] if isinstance(d["prompt"], str) else d["prompt"][0], "prompt")
    most = asking.tokens_of(d, service.limits.tokens, "max_tokens")
    ask = Ask(owner_of(request), prompt, (), None, asking.sampling_of(d), d["seed"], most, asking.stop_of(d), d["logprobs"])
    ticket = service.scheduler.submit(lambda t: service.turns.plain(ask, t))
    about = _about(service.model.name, service.model.fingerprint, "cmpl")
    if d["stream"]:
        return Events(ticket, TextVoice(about, _usage_asked(d), ask.top is not None), service.limits.ping, service.hide)
    outcome = uncut(await finished(request, ticket))
    told = None if ask.top is None else _old_logprobs(outcome.logprobs, 0)[0]
    choice = {"index": 0, "text": outcome.text, "logprobs": told, "finish_reason": outcome.finish}
    body = {**about, "object": "text_completion", "choices": [choice], "usage": usage_of(outcome)}
    return JSONResponse(body, headers=told_of(outcome.began))


class ChatVoice:
    """Chunks of a chat completion."""

    def __init__(self, about: dict[str, Any], usage: bool, told: bool):
        self.about, self.usage, self.told = {**about, "object": "chat.completion.chunk"}, usage, told

    def begin(self) -> str:
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, None)

    def piece(self, piece: Piece) -> str:
        return self._chunk({"content": piece.text}, None, piece.logprobs)

    def done(self, outcome: Outcome) -> str:
        last = self._chunk({}, outcome.finish)
        if self.usage:
            last += event({**self.about, "choices": [], "usage": usage_of(outcome)})
        return last + event("[DONE]")

    def failed(self, refusal: Refusal) -> str:
        return event(refusal.body())

    def _chunk(self, delta: dict[str, Any], finish: str | None, logprobs: list[dict[str, Any]] | None = None) -> str:
        told = {"content": logprobs, "refusal": None} if self.told and logprobs is not None else None
        choice = {"index": 0, "delta": delta, "logprobs": told, "finish_reason": finish}
        return event({**self.about, "choices": [choice], **({"usage": None} if self.usage else {})})


class TextVoice:
    """Chunks of a completion."""

    def __init__(self, about: dict[str, Any], usage: bool, told: bool):
        self.about, self.usage, self.told = {**about, "object": "text_completion"}, usage, told
        self._at = 0

    def begin(self) -> str:
        return ""

    def piece(self, piece: Piece) -> str:
        told = None
        if self.told:
            told, self._at = _old_logprobs(piece.logprobs, self._at)
        return self._chunk(piece.text, None, told)

    def done(self, outcome: Outcome) -> str:
        last = self._chunk("", outcome.finish, None)
        if self.usage:
            last += event({**self.about, "choices": [], "usage": usage_of(outcome)})
        return last + event("[DONE]")

    def failed(self, refusal: Refusal) -> str:
        return event(refusal.body())

    def _chunk(self, said: str, finish: str | None, told: dict[str, Any] | None) -> str:
        choice = {"index": 0, "text": said, "logprobs": told, "finish_reason": finish}
        return event({**self.about, "choices": [choice], **({"usage": None} if self.usage else {})})


def usage_of(outcome: Outcome) -> dict[str, Any]:
    """Tokens, as OpenAI counts them. prompt_tokens: of the whole conversation so far; cached_tokens: those the memory or its window had already."""
    prompt, said = outcome.began.prompt_tokens, outcome.completion_tokens
    details = {"cached_tokens": outcome.began.cached_tokens}
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said, "prompt_tokens_details": details}


def _usage_asked(d: dict[str, Any]) -> bool:
    if d["stream_options"] is not None and not d["stream"]:
        raise Refusal(400, "stream_options needs stream: true", "stream_options", "invalid_value")
    return bool(d["stream_options"] and d["stream_options"]["include_usage"])


def _about(model: str, fingerprint: str, kind: str) -> dict[str, Any]:
    own = new_id("response").partition("_")[2]
    return {"id": f"{kind}-{own}", "created": int(time.time()), "model": model, "system_fingerprint": f"lm2_{fingerprint[:16]}"}


def _old_logprobs(told: list[dict[str, Any]], at: int) -> tuple[dict[str, Any], int]:
    """The older shape of log probabilities, from character `at` on; and the character after it."""
    offsets = []
    for one in told:
        offsets.append(at)
        at += len(one["token"])
    tops = [{t["token"]: t["logprob"] for t in one["top_logprobs"]} for one in told]
    return {"tokens": [o["token"] for o in told], "token_logprobs": [o["logprob"] for o in told], "top_logprobs": tops, "text_offset": offsets}, at
