"""What the answers look like, as JSON schemas. A test holds the server to them. Knows names only."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}


def of(**fields: Schema) -> Schema:
    """An object with all of these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def some(kind: Schema) -> Schema:
    return {"type": "array", "items": kind}


def maybe(kind: Schema) -> Schema:
    return {"anyOf": [kind, NULL]}


def is_(*values: Any) -> Schema:
    return {"enum": list(values)}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def page(kind: Schema, **more: Schema) -> Schema:
    return of(object=is_("list"), data=some(kind), **more)


_TOP = of(token=TEXT, logprob=NUMBER, bytes=some(WHOLE))
_LOGPROB = of(token=TEXT, logprob=NUMBER, bytes=some(WHOLE), top_logprobs=some(_TOP))
_OLD_LOGPROBS = of(tokens=some(TEXT), token_logprobs=some(NUMBER), top_logprobs=some({"type": "object", "additionalProperties": NUMBER}), text_offset=some(WHOLE))
_USAGE = of(prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE, prompt_tokens_details=of(cached_tokens=WHOLE))
_ABOUT = dict(id=TEXT, created=WHOLE, model=TEXT, system_fingerprint=TEXT)
_FINISH = is_("stop", "length")
_MESSAGE = of(role=is_("assistant"), content=TEXT, refusal=NULL, annotations=some({}))
_CHOICE = of(index=WHOLE, message=_MESSAGE, logprobs=maybe(of(content=some(_LOGPROB), refusal=NULL)), finish_reason=_FINISH)
_OUTPUT = of(type=is_("output_text"), text=TEXT, annotations=some({}), logprobs=some(_LOGPROB))
_INPUT = of(type=is_("input_text"), text=TEXT)
_SESSION: dict[str, Schema] = dict(
    id=TEXT, object=is_("session"), model=TEXT, system=maybe(TEXT), seed=WHOLE, sampling={"type": "object", "additionalProperties": NUMBER}, turns=WHOLE,
    tokens=WHOLE, memory_tokens=WHOLE, window=WHOLE, window_tokens=WHOLE, undo=WHOLE, forgotten_messages=WHOLE,
    transcript=some(of(role=is_("user", "assistant"), content=TEXT)), transcript_turns=some(WHOLE),
)  # fmt: skip
_TURN: Schema = {"type": "integer", "minimum": -1}
_RESPONSE_USAGE = of(
    input_tokens=WHOLE, input_tokens_details=of(cached_tokens=WHOLE, cache_write_tokens=WHOLE), output_tokens=WHOLE,
    output_tokens_details=of(reasoning_tokens=WHOLE), total_tokens=WHOLE,
)  # fmt: skip

SCHEMAS: dict[str, Schema] = {
    "Error": of(error=of(message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT))),
    "Health": of(status=is_("ok", "loading", "stopping")),
    "Props": of(
        model=TEXT, fingerprint=TEXT, version=TEXT, backend=TEXT, device=TEXT, dtype=TEXT, quantization=TEXT,
        memory=of(cell=TEXT, layers=some(WHOLE), slots=WHOLE, chunk=WHOLE, state_bytes=WHOLE), window=WHOLE,
        sampling={"type": "object", "additionalProperties": NUMBER}, limits={"type": "object", "additionalProperties": NUMBER}, store=FLAG,
    ),
    "Model": of(id=TEXT, object=is_("model"), created=WHOLE, owned_by=TEXT),
    "Models": page(ref("Model")),
    "ChatCompletion": of(**_ABOUT, object=is_("chat.completion"), choices=some(_CHOICE), usage=_USAGE),
    "Completion": of(
        **_ABOUT, object=is_("text_completion"), usage=_USAGE,
        choices=some(of(index=WHOLE, text=TEXT, logprobs=maybe(_OLD_LOGPROBS), finish_reason=_FINISH)),
    ),
    "Session": of(**_SESSION),
    "Sessions": page(of(id=TEXT, object=is_("session"))),
    "SessionRead": of(**_SESSION, read_tokens=WHOLE),
    "SessionForgotten": of(**_SESSION, forgotten=of(rows=WHOLE, tokens=WHOLE, messages=WHOLE, undo=WHOLE)),
    "Held": page(of(turn=_TURN, share=NUMBER, rows=WHOLE, text=TEXT, window_tokens=WHOLE)),
    "Answered": of(
        object=is_("answered"), turn=WHOLE, recalled=some(of(turn=WHOLE, text=TEXT)), note=maybe(TEXT),
        attention=maybe(of(
            memory_tokens=WHOLE, tokens=some(TEXT), turns=some(of(turn=_TURN, share=NUMBER)),
            rows=some(of(row=WHOLE, share=NUMBER, turn=_TURN, token=TEXT)),
            layers=some(of(layer=WHOLE, rows_a_line=WHOLE, most=NUMBER, picture=TEXT)),
        )),
    ),
    "Deleted": of(id=TEXT, object=TEXT, deleted=is_(True)),
    "Item": of(
        id=TEXT, type=is_("message"), status=is_("completed", "incomplete"), role=is_("user", "assistant", "system"), content=some({"anyOf": [_OUTPUT, _INPUT]})
    ),
    "Items": page(ref("Item"), has_more=FLAG, first_id=TEXT, last_id=TEXT),
    "Conversation": of(id=TEXT, object=is_("conversation"), created_at=WHOLE, metadata=LABELS),
    "Response": of(
        id=TEXT, object=is_("response"), created_at=WHOLE, completed_at=maybe(WHOLE), status=is_("completed", "incomplete"), error=NULL,
        incomplete_details=maybe(of(reason=is_("max_output_tokens"))), model=TEXT, output=some(ref("Item")), usage=_RESPONSE_USAGE,
        instructions=maybe(TEXT), previous_response_id=maybe(TEXT), conversation=maybe(of(id=TEXT)), metadata=LABELS, store=FLAG, background=FLAG,
        temperature=NUMBER, top_p=NUMBER, presence_penalty=NUMBER, frequency_penalty=NUMBER, top_logprobs=WHOLE, max_output_tokens=maybe(WHOLE),
        max_tool_calls=NULL, tools=some({}), tool_choice=is_("none"), parallel_tool_calls=FLAG, text=of(format=of(type=is_("text"))),
        truncation=is_("disabled", "auto"), reasoning=NULL, service_tier=is_("default"), safety_identifier=maybe(TEXT), prompt_cache_key=maybe(TEXT),
        user=maybe(TEXT),
    ),
}  # fmt: skip
