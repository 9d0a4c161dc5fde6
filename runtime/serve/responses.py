"""/v1/responses: answers that can be gone on from by their id. An id is a moment of a memory, of constant size; nothing is sent or read twice.

Knows HTTP, items and an Ask; turns.py answers it.
"""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session.session import Session
from . import asking
from .asking import NEUTRAL, NO_TOOLS, SAMPLING, SEED
from .chain import Message
from .chat import no_session
from .conversations import keep, record_of
from .fields import Field, Table, either, flag, labels, listed, only, table, text, whole
from .http import Events, event, family_of, finished, json_body, owner_of, service_of, told_of, work
from .http import whole as uncut
from .items import input_kind, item, output_part
from .logprobs import TOP_MAX
from .refusal import Refusal, unsupported
from .scheduler import Ticket
from .service import Service, missing, named, new_id
from .shelf import resting
from .store import Name
from .turns import Ask, Outcome, Piece, check_text

LOGPROBS = "message.output_text.logprobs"
FORMAT: Table = {"format": Field(table({"type": Field(only(("text",), "only text: this server forces no format"), need=True)})), "verbosity": Field(only((), "not supported"))}
CONVERSATION: Table = {"id": Field(text(100), need=True)}

CREATE: Table = {
    "model": Field(text(200)),
    "input": Field(input_kind(), need=True),
    "instructions": Field(text()),
    "previous_response_id": Field(text(100)),
    "conversation": Field(either(text(100), table(CONVERSATION), dict)),
    "store": Field(flag(), True),
    "stream": Field(flag(), False),
    "stream_options": Field(table({"include_obfuscation": Field(only((False,), "not supported"))})),
    "metadata": Field(labels(), {}),
    "max_output_tokens": Field(whole(1, 1 << 31)),
    "seed": SEED,
    "top_logprobs": Field(whole(0, TOP_MAX), 0),
    "include": Field(listed(only((LOGPROBS,), f"only {LOGPROBS} can be included"), 4), []),
    "text": Field(table(FORMAT)),
    "truncation": Field(only(("disabled", "auto"), "not supported")),
    "tools": Field(only(([],), NO_TOOLS)),
    "tool_choice": Field(only(("none", "auto"), NO_TOOLS)),
    "parallel_tool_calls": Field(flag()),
    "max_tool_calls": Field(only((), NO_TOOLS)),
    "background": Field(only((False,), "answers are made while you wait")),
    "reasoning": Field(only(({},), "this model does not reason before it answers")),
    "service_tier": Field(only(("auto", "default"), "not supported")),
    "prompt": Field(only((), "there are no stored prompts")),
    **{name: field for name, field in NEUTRAL.items() if name not in ("n", "logit_bias")},
    **SAMPLING,
}


async def create(request: Request) -> Response:
    """Answer; from a response's moment, in a conversation, or from a whole transcript."""
    service = service_of(request)
    no_session(request)
    d = await json_body(request, CREATE)
    service.check_model(d["model"])
    made = Responding(service, owner_of(request), d, family_of(request))
    ticket = service.scheduler.submit(made.answer, made.name)
    if d["stream"]:
        return Events(ticket, made, service.limits.ping, service.hide)
    outcome = uncut(await finished(request, ticket))
    return JSONResponse(made.final, headers=told_of(outcome.began))


async def show(request: Request) -> Response:
    """A stored response."""
    if "stream" in request.query_params:
        raise unsupported("stream", "a stored response is given whole")
    service, name = service_of(request), named("response", owner_of(request), request.path_params["id"])
    found = service.records.get(name)
    if found is None:
        raise missing("response", name.id)
    return JSONResponse(found)


async def delete(request: Request) -> Response:
    """Forget a response and its moment."""
    service, name = service_of(request), named("response", owner_of(request), request.path_params["id"])
    await work(request, lambda ticket: service.drop(name))
    return JSONResponse({"id": name.id, "object": "response", "deleted": True})


class Responding:
    """One response in the making, and its voice. Raises Refusal for fields that contradict each other. `final`: the resource, once it is made."""

    def __init__(self, service: Service, owner: str, d: dict[str, Any], family: str | None = None):
        self.service, self.owner, self.d = service, owner, d
        self.id, self.item_id, self.created = new_id("response", family), new_id("message"), int(time.time())
        self.final: dict[str, Any] = {}
        self._number = 0
        system, messages = asking.split(d["input"], "input")
        if d["instructions"] is not None:
            check_text(d["instructions"], "instructions", empty=True)
            if system is not None:
                raise Refusal(400, "instructions and a system message: give one", "instructions", "invalid_value")
        given = d["conversation"]
        self.conversation: str | None = given["id"] if isinstance(given, dict) else given
        self.name = None if self.conversation is None else named("conversation", owner, self.conversation)
        if self.conversation is not None and d["previous_response_id"] is not None:
            raise Refusal(400, "previous_response_id and conversation: give one", "conversation", "invalid_value")
        top = d["top_logprobs"] if LOGPROBS in d["include"] or d["top_logprobs"] else None
        most = asking.tokens_of(d, service.limits.tokens, "max_output_tokens")
        system = d["instructions"] or system
        self.ask = Ask(owner, messages[-1].content, messages[:-1], system, asking.sampling_of(d), d["seed"], most, (), top)
        self.said = (*([Message("system", system)] if system and given is None else []), *messages)

    def answer(self, ticket: Ticket) -> Outcome:
        """Make the answer, on the model's thread, and keep what is to be kept."""
        service, ask = self.service, self.ask
        if self.name is not None:
            outcome, moment = self._in_conversation(self.name, ticket)
        elif self.d["previous_response_id"] is not None:
            base = service.take(named("response", self.owner, self.d["previous_response_id"]))
            self._check_system(base)
            if ask.history:
                base = service.shelf.onward(base)
                service.turns.hear(base, ask.history, ticket, text=base.recalling is not None)
            outcome, moment = service.turns.onward_from(base, ask, ticket, None)
        else:
            outcome, moment = service.turns.moment(ask, ticket)
        if outcome.finish == "interrupted":
            return outcome
        self.final = self._resource(outcome)
        if self.d["store"]:
            name = Name("response", self.owner, self.id)
            service.shelf.put(name, moment)
            service.records.put(name, self.final)
        return outcome

    def _in_conversation(self, name: Name, ticket: Ticket) -> tuple[Outcome, Session]:
        """The turn goes into a copy, which takes the conversation's place when it is whole."""
        service, ask = self.service, self.ask
        session = service.take(name)
        if ask.system and not session.at.seen and not session.system:
            going = service.turns.new(ask.system, seed=session.seed, sampling=session.sampling)
        else:
            self._check_system(session)
            going = service.shelf.onward(session)
        service.turns.hear(going, ask.history, ticket)
        outcome = service.turns.within(going, ask, ticket)
        if outcome.finish != "interrupted":
            said = [item(m) for m in self.said] + [item(Message("assistant", outcome.text), own=self.item_id, logprobs=outcome.logprobs)]
            keep(service, name, going, record_of(service, name), said)
        return outcome, resting(going.fork())

    def _check_system(self, session: Session) -> None:
        if self.ask.system and self.ask.system != session.system:
            raise unsupported("instructions", "what the conversation began with stays: leave instructions out, or begin a new one")

    def begin(self) -> str:
        part = {"item_id": self.item_id, "output_index": 0, "content_index": 0, "part": output_part("")}
        empty = {**item(Message("assistant", ""), "in_progress", self.item_id), "content": []}
        return (
            self._event("response.created", response=self._resource(None))
            + self._event("response.in_progress", response=self._resource(None))
            + self._event("response.output_item.added", output_index=0, item=empty)
            + self._event("response.content_part.added", **part)
        )

    def piece(self, piece: Piece) -> str:
        return self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=piece.logprobs)

    def done(self, outcome: Outcome) -> str:
        output = self.final["output"][0]
        return (
            self._event("response.output_text.done", **self._place(), text=outcome.text, logprobs=outcome.logprobs)
            + self._event("response.content_part.done", **self._place(), part=output["content"][0])
            + self._event("response.output_item.done", output_index=0, item=output)
            + self._event(f"response.{self.final['status']}", response=self.final)
            + event("[DONE]")
        )

    def failed(self, refusal: Refusal) -> str:
        error = {"code": "server_error", "message": str(refusal)}
        return self._event("response.failed", response={**self._resource(None), "status": "failed", "error": error}) + event("[DONE]")

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **more}, kind)

    def _resource(self, outcome: Outcome | None) -> dict[str, Any]:
        """The response object: under way (None), or as it ended."""
        d, sampling = self.d, {**self.service.model.sampling.to_dict(), **self.ask.sampling}
        status, output, usage = "in_progress", [], None
        if outcome is not None:
            status = "incomplete" if outcome.finish == "length" else "completed"
            output = [item(Message("assistant", outcome.text), status, self.item_id, outcome.logprobs)]
            usage = usage_of(outcome)
        return {
            "id": self.id, "object": "response", "created_at": self.created, "completed_at": int(time.time()) if status == "completed" else None,
            "status": status, "error": None, "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.service.model.name, "output": output, "usage": usage, "instructions": d["instructions"],
            "previous_response_id": d["previous_response_id"], "conversation": {"id": self.conversation} if self.conversation else None,
            "metadata": d["metadata"], "store": d["store"], "background": False, "temperature": sampling["temperature"], "top_p": sampling["top_p"],
            "presence_penalty": 0, "frequency_penalty": 0, "top_logprobs": d["top_logprobs"], "max_output_tokens": d["max_output_tokens"],
            "max_tool_calls": None, "tools": [], "tool_choice": "none", "parallel_tool_calls": bool(d["parallel_tool_calls"]),
            "text": {"format": {"type": "text"}}, "truncation": d["truncation"] or "disabled", "reasoning": None, "service_tier": "default",
            "safety_identifier": d["safety_identifier"], "prompt_cache_key": d["prompt_cache_key"], "user": d["user"],
        }  # fmt: skip


def usage_of(outcome: Outcome) -> dict[str, Any]:
    """Tokens, as the Responses API counts them; of the whole conversation, as in chat completions. Those that were not there already are kept."""
    prompt, cached, said = outcome.began.prompt_tokens, outcome.began.cached_tokens, outcome.completion_tokens
    return {
        "input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": prompt - cached},
        "output_tokens": said, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + said,
    }  # fmt: skip
