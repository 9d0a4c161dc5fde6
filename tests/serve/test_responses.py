"""Responses and conversations: judged by OpenAI's client and by the types of the Open Responses specification, and equal to a session's own answers."""

from dataclasses import replace
from importlib.util import find_spec

import openai
import pytest
from serve_kit import Web, refused, served

from lm2.runtime.session.session import Session

NOBODY = "resp_" + "0" * 32
needs_types = pytest.mark.skipif(find_spec("openresponses_types") is None, reason="openresponses-types is not installed")


def client_of(server, key="none"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, _strict_response_validation=True, max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def respond(web, said, **fields):
    answer = web("POST", "/v1/responses", {"input": said, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(response):
    return response["output"][0]["content"][0]["text"]


def checked(kind, value):
    """Read by the specification's own types; every name it knows must be there, since they are read leniently."""
    import openresponses_types.types as types

    model = getattr(types, kind)
    assert set(value) >= set(model.model_fields) - {"obfuscation"}, set(model.model_fields) - set(value)
    return model.model_validate(value)


def test_a_response_goes_on(client):
    first = client.responses.create(model="lm2-tiny", input="Mary went to the kitchen.")
    second = client.responses.create(model="lm2-tiny", input="Where is Mary?", previous_response_id=first.id)
    assert (first.output_text, second.output_text) == ("Ok.", "kitchen.")
    assert second.previous_response_id == first.id and second.status == "completed"
    assert second.usage.input_tokens > first.usage.input_tokens and second.usage.input_tokens_details.cached_tokens > 0
    branch = client.responses.create(model="lm2-tiny", input="Mary went to the office.", previous_response_id=first.id)
    assert client.responses.create(model="lm2-tiny", input="Where is Mary?", previous_response_id=branch.id).output_text == "office."
    assert client.responses.create(model="lm2-tiny", input="Where is Mary?", previous_response_id=first.id).output_text == "kitchen."
    assert client.responses.retrieve(second.id).output_text == "kitchen."
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="deleted"):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="lm2-tiny", input="Hi", previous_response_id=second.id)


def test_it_says_what_a_session_says(talk, talker):
    settings = dict(temperature=1.1, top_k=20)
    first = respond(talk, "Hello", instructions="Be brief.", seed=3, max_output_tokens=20, **settings)
    second = respond(talk, "And you?", previous_response_id=first["id"], seed=3, max_output_tokens=20, **settings)
    session = Session(talker, "Be brief.", replace(talker.sampling, **settings), 3)
    assert text_of(first) == session.say("Hello", max_tokens=20) and first["status"] == "incomplete"
    session.at = session.at._replace(draws=0)  # each response begins its seed anew
    assert text_of(second) == session.say("And you?", max_tokens=20)
    refused(talk("POST", "/v1/responses", {"input": "x", "instructions": "Be long.", "previous_response_id": first["id"]}), 400, "instructions")


def test_a_whole_transcript_is_an_input(web):
    said = [
        {"role": "user", "content": "Mary went to the kitchen."},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Ok.", "annotations": []}], "id": "msg_1", "status": "completed"},
        {"role": "user", "content": [{"type": "input_text", "text": "Where is Mary?"}]},
    ]
    answer = web("POST", "/v1/responses", {"input": said})
    assert text_of(answer.json()) == "kitchen." and "x-lm2-reuse" in answer.headers
    first = respond(web, "John took the milk.")
    more = [*said[:2], {"role": "user", "content": "Where is Mary?"}]
    assert text_of(respond(web, more, previous_response_id=first["id"])) == "kitchen."


@needs_types
def test_every_event_is_the_specifications(web):
    names = {
        "response.created": "ResponseCreatedStreamingEvent", "response.in_progress": "ResponseInProgressStreamingEvent",
        "response.output_item.added": "ResponseOutputItemAddedStreamingEvent", "response.content_part.added": "ResponseContentPartAddedStreamingEvent",
        "response.output_text.delta": "ResponseOutputTextDeltaStreamingEvent", "response.output_text.done": "ResponseOutputTextDoneStreamingEvent",
        "response.content_part.done": "ResponseContentPartDoneStreamingEvent", "response.output_item.done": "ResponseOutputItemDoneStreamingEvent",
        "response.completed": "ResponseCompletedStreamingEvent", "response.incomplete": "ResponseIncompleteStreamingEvent",
    }  # fmt: skip
    asked = {"input": "Where is Mary?", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for more, last in (({}, "response.completed"), ({"max_output_tokens": 1}, "response.incomplete")):
        events, answer = web.events("/v1/responses", {**asked, **more})
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        kinds = [e["type"] for e in events]
        assert kinds[:4] == list(names)[:4] and kinds[-4:] == [*list(names)[5:8], last] and set(kinds[4:-4]) == {"response.output_text.delta"}
        for one in events:
            checked(names[one["type"]], one)
        final = events[-1]["response"]
        checked("ResponseResource", final)
        assert "".join(e["delta"] for e in events if e["type"].endswith("delta")) == text_of(final) == events[-4]["text"]
        assert web("GET", f"/v1/responses/{final['id']}").json() == final
        assert [line for line in answer.text.split("\n") if line.startswith("event: ")] == [f"event: {kind}" for kind in kinds]
        assert answer.text.endswith("data: [DONE]\n\n")
        assert len(final["output"][0]["content"][0]["logprobs"]) == final["usage"]["output_tokens"]


@needs_types
def test_the_types_are_a_judge(web):
    """The control: an event with a field missing, or of another kind, is not let through."""
    import pydantic

    events, _ = web.events("/v1/responses", {"input": "Where is Mary?"})
    delta = next(e for e in events if e["type"].endswith("delta"))
    for wrong in ({k: v for k, v in delta.items() if k != "item_id"}, delta | {"output_index": "first"}, delta | {"type": "response.text"}):
        with pytest.raises((AssertionError, pydantic.ValidationError)):
            checked("ResponseOutputTextDeltaStreamingEvent", wrong)


def test_the_client_reads_a_stream(client):
    with client.responses.stream(model="lm2-tiny", input="Where is Mary?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed" and final.output_text


def test_what_is_not_stored_is_not_there(web):
    answer = respond(web, "Mary went to the kitchen.", store=False)
    refused(web("GET", f"/v1/responses/{answer['id']}"), 404)
    refused(web("POST", "/v1/responses", {"input": "Hi", "previous_response_id": answer["id"]}), 404)


def test_owners_see_their_own_alone(model):
    with served(model, keys=("ada", "bob")) as running:
        ada, bob = Web(running, "ada"), Web(running, "bob")
        own = respond(ada, "Mary went to the kitchen.")["id"]
        refused(bob("GET", f"/v1/responses/{own}"), 404)
        refused(bob("DELETE", f"/v1/responses/{own}"), 404)
        refused(bob("POST", "/v1/responses", {"input": "Where is Mary?", "previous_response_id": own}), 404)
        there = ada("POST", "/v1/conversations", {}).json()["id"]
        for method, path, body in (("GET", "", None), ("POST", "", {"metadata": {}}), ("DELETE", "", None), ("GET", "/items", None), ("POST", "/items", {"items": [{"role": "user", "content": "x"}]})):
            refused(bob(method, f"/v1/conversations/{there}{path}", body), 404)
        refused(bob("POST", "/v1/responses", {"input": "Hi", "conversation": there}), 404)
        assert ada("GET", f"/v1/responses/{own}").status_code == 200


def test_responses_are_bounded_without_a_store(model):
    with served(model, memory=5 << 20) as running:
        web = Web(running)
        ids = [respond(web, f"John took {i} apples.")["id"] for i in range(10)]
        assert running.service.shelf.size()[1] <= 5 << 20
        there = [web("GET", f"/v1/responses/{own}").status_code for own in ids]
        assert there[0] == 404 and there[-1] == 200
        refused(web("POST", "/v1/responses", {"input": "Hi", "previous_response_id": ids[0]}), 404, "dropped")


def test_they_outlive_the_server(model, tmp_path):
    with served(model, store=tmp_path) as running:
        web = Web(running)
        first = respond(web, "Mary went to the kitchen.")
        talked = web("POST", "/v1/conversations", {"metadata": {"about": "Mary"}}).json()["id"]
        respond(web, "John moved to the garden.", conversation=talked)
    with served(model, store=tmp_path) as running:
        web = Web(running)
        assert web("GET", f"/v1/responses/{first['id']}").json() == first
        assert text_of(respond(web, "Where is Mary?", previous_response_id=first["id"])) == "kitchen."
        assert text_of(respond(web, "Where is John?", conversation=talked)) == "garden."
        assert web("GET", f"/v1/conversations/{talked}").json()["metadata"] == {"about": "Mary"}
        assert len(web("GET", f"/v1/conversations/{talked}/items").json()["data"]) == 4


def test_a_conversation(client, web):
    items = [{"type": "message", "role": "user", "content": "Mary went to the kitchen."}, {"type": "message", "role": "assistant", "content": "Ok."}]
    talked = client.conversations.create(items=items, metadata={"about": "Mary"})
    assert client.conversations.retrieve(talked.id).metadata == {"about": "Mary"}
    answer = client.responses.create(model="lm2-tiny", input="Where is Mary?", conversation=talked.id)
    assert answer.output_text == "kitchen." and answer.conversation.id == talked.id
    client.conversations.items.create(talked.id, items=[{"type": "message", "role": "user", "content": "Mary went to the office."}])
    assert client.responses.create(model="lm2-tiny", input="Where is Mary?", conversation={"id": talked.id}).output_text == "office."
    said = [i.content[0].text for i in client.conversations.items.list(talked.id, order="asc", limit=3)]  # the client asks for page after page
    assert said == ["Mary went to the kitchen.", "Ok.", "Where is Mary?", "kitchen.", "Mary went to the office.", "Where is Mary?", "office."]
    newest = client.conversations.items.list(talked.id, limit=1)
    assert newest.data[0].content[0].text == "office." and newest.has_more
    assert client.conversations.items.retrieve(newest.data[0].id, conversation_id=talked.id).id == newest.data[0].id
    assert client.conversations.update(talked.id, metadata={"about": "offices"}).metadata == {"about": "offices"}
    with pytest.raises(openai.APIStatusError) as no:
        client.conversations.items.delete(newest.data[0].id, conversation_id=talked.id)
    assert no.value.status_code == 405
    assert client.conversations.delete(talked.id).deleted
    refused(web("GET", f"/v1/conversations/{talked.id}/items"), 404)
    refused(web("POST", "/v1/responses", {"input": "Hi", "conversation": talked.id}), 404)


def test_a_conversation_is_left_as_it_was_by_what_failed(talk):
    talked = talk("POST", "/v1/conversations", {}).json()["id"]
    respond(talk, "Hello", conversation=talked, max_output_tokens=5)
    before = talk("GET", f"/v1/conversations/{talked}/items").json()
    refused(talk("POST", "/v1/responses", {"input": "Hi", "conversation": talked, "instructions": "Be brief."}), 400, "instructions")
    assert talk("GET", f"/v1/conversations/{talked}/items").json() == before


BAD = [
    ({}, "input"),
    ({"input": ""}, "input[0].content"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"background": True}, "background"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"truncation": "most"}, "truncation"),
    ({"previous_response_id": NOBODY, "conversation": "conv_" + "0" * 32}, "conversation"),
    ({"stop": ["x"]}, "stop"),
    ({"store": "yes"}, "store"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_a_bad_field_is_refused_by_name(web, fields, param):
    body = {"input": "Hi"} | fields if fields and "input" not in fields else fields
    assert refused(web("POST", "/v1/responses", body), 400)["param"] == param


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=101", "order=up", "after=msg_1", "before=x"])
def test_a_bad_page(web, query):
    talked = web("POST", "/v1/conversations", {}).json()["id"]
    assert refused(web("GET", f"/v1/conversations/{talked}/items?{query}"), 400)["param"] == query.partition("=")[0]
