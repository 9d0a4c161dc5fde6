"""Chat completions and completions: what a session says, in the shapes OpenAI's client accepts, whole and in pieces."""

import openai
import pytest
from serve_kit import refused, transcript

from lm2.runtime.session.sampling import log_probability
from lm2.runtime.session.session import Session

TALK = ("Mary went to the kitchen.", "Ok.", "John moved to the garden.", "Ok.", "Where is Mary?")


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", _strict_response_validation=True, max_retries=0)


def told(model, *said, seed=0, **sampling):
    """What a session of its own says last, turn after turn."""
    from dataclasses import replace

    session = Session(model, seed=seed)
    for message, answer in zip(said[:-1:2], said[1::2], strict=True):
        session.hear(message, answer)
    session.sampling = replace(session.sampling, **sampling)
    return session.say(said[-1], max_tokens=40), session


def test_the_client_reads_an_answer(client, model):
    answer = client.chat.completions.create(model="lm2-tiny", messages=transcript(*TALK))
    assert answer.choices[0].message.content == told(model, *TALK)[0] == "kitchen."
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens == 2


def test_the_client_reads_a_stream(client, model):
    asked = dict(model="lm2-tiny", messages=transcript(*TALK), stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**asked))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == told(model, *TALK)[0]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == 2 and not any(c.usage for c in chunks[:-1])


def test_a_stream_ends_with_done(web):
    _, answer = web.events("/v1/chat/completions", {"messages": transcript("Where is Mary?")})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("seed", [1, 2, 2**64 - 1])
def test_a_seed_says_what_a_session_says(talk, talker, seed):
    settings = dict(temperature=1.5, top_k=50, top_p=0.9, min_p=0.01)
    asked = dict(seed=seed, max_tokens=40, **settings)
    for _ in range(2):  # the second finds the first's memory
        assert talk.say("Hello", "Hi there", "And you?", **asked) == told(talker, "Hello", "Hi there", "And you?", seed=seed, **settings)[0]


def test_other_seeds_say_other_things(talk):
    assert len({talk.say("Hello", seed=seed, temperature=1.5, max_tokens=40) for seed in range(3)}) == 3


def test_logprobs_are_the_models(client, model):
    answer = client.chat.completions.create(model="lm2-tiny", messages=transcript(*TALK), logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(t.token for t in tokens).strip() == "kitchen." and len(tokens) == 2
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob  # greedy takes the likeliest
        assert bytes(token.bytes).decode() == token.token and token.logprob <= 0
    expected = []
    session = Session(model, seed=0)
    session.chosen = lambda z, token: expected.append(log_probability(z, token))
    for message, said in zip(TALK[:-1:2], TALK[1::2], strict=True):
        session.hear(message, said)
    session.say(TALK[-1])
    assert [t.logprob for t in tokens] == pytest.approx(expected, abs=1e-4)


def test_streamed_logprobs_are_the_whole_ones(talk):
    asked = dict(messages=transcript("Hello"), seed=5, temperature=1.0, max_tokens=30, logprobs=True, top_logprobs=1)
    whole = talk("POST", "/v1/chat/completions", asked).json()["choices"][0]["logprobs"]["content"]
    events, _ = talk.events("/v1/chat/completions", asked)
    parts = [x for e in events for c in e["choices"] if c["logprobs"] for x in c["logprobs"]["content"]]
    assert parts == whole and len(whole) == 30


def test_a_stop_string_ends_it(talk, web):
    text = talk.say("Hello", seed=3, temperature=1.0, max_tokens=40)
    stop = text[10:13]
    answer, _ = talk.chat("Hello", seed=3, temperature=1.0, max_tokens=40, stop=[stop], logprobs=True)
    assert answer["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    shown = b"".join(bytes(t["bytes"]) for t in answer["choices"][0]["logprobs"]["content"])
    assert len(shown) <= len(text[: text.index(stop)].encode()) + 4


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens(talk, name):
    answer, _ = talk.chat("Hello", **{name: 5})
    assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["finish_reason"] == "length"


def test_parts_of_text_are_one_message(web):
    parts = [{"type": "text", "text": "Mary went to the kitchen."}, {"type": "text", "text": "Where is Mary?"}]
    answer = web("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert answer.json()["choices"][0]["message"]["content"] == web.say("Mary went to the kitchen.\nWhere is Mary?")


def test_completions(client, web, model):
    answer = client.completions.create(model="lm2-tiny", prompt="Mary went to", max_tokens=6, logprobs=1)
    session = Session(model, seed=0)
    assert answer.choices[0].text == "".join(session.complete("Mary went to", 6))
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens
    events, _ = web.events("/v1/completions", {"prompt": "Mary went to", "max_tokens": 6})
    assert "".join(e["choices"][0]["text"] for e in events) == answer.choices[0].text


def test_models_and_props(client, web, model):
    assert [m.id for m in client.models.list()] == ["lm2-tiny"] == [client.models.retrieve("lm2-tiny").id]
    props = web("GET", "/props").json()
    assert props["fingerprint"] == model.fingerprint and props["window"] == 64
    with pytest.raises(openai.NotFoundError, match="lm2-tiny"):
        client.models.retrieve("gpt-5")


def test_metrics_count(web):
    from prometheus_client.parser import text_string_to_metric_families

    def figures():
        families = text_string_to_metric_families(web("GET", "/metrics").text)
        return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}

    before = figures()
    answer, _ = web.chat("Where is Mary?")
    after = figures()
    for kind in ("prompt", "completion"):
        name = ("lm2_tokens_total", ("kind", kind))
        assert after[name] - before.get(name, 0) == answer["usage"][f"{kind}_tokens"]
    assert after[("lm2_sessions_in_memory",)] > 0 and after[("lm2_session_bytes",)] > 0


BAD = [  # a chat's fields, and the field that the refusal names
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ada"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
    ({"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}, "messages[1]"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"n": 2}, "n"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"store": True}, "store"),
    ({"model": "gpt-5"}, "model"),
    ({"magic": 1}, "magic"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[f"{param}-{i}" for i, (_, param) in enumerate(BAD)])
def test_a_bad_field_is_refused_by_name(web, fields, param):
    body = {"messages": transcript("Hi")} | fields if fields and "messages" not in fields else fields
    error = refused(web("POST", "/v1/chat/completions", body), 404 if param == "model" else 400)
    assert error["param"] == param


NEUTRAL = {
    "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0,
    "user": "ada", "stop": None, "seed": None, "store": False, "metadata": None, "model": "lm2-tiny", "stream": False, "logprobs": False,
}  # fmt: skip


def test_what_asks_for_nothing_is_no_fault(web):
    assert web.say("Where is Mary?", **NEUTRAL) == web.say("Where is Mary?")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"messages": "\xff"}', "UTF-8"),
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"temperature": NaN}', "NaN"),
        (b"[" * 100_000, "32 levels"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1' + b"0" * 99 + b"}", "temperature must be"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature must be"),
        (b'{"\\ud800": 1}', "ud800: this server does not know"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "\\udfff": 1}]}]}', "content[0].\\\\udfff"),
        (b'{"' + b"x" * 300_000 + b'": 1}', "xxx...: this"),
        (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", "deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "100 digits"),
    ],
    ids=["utf8", "cut", "list", "twice", "nan", "brackets", "huge", "infinite", "half", "half-within", "long-name", "deep", "digits"],
)
def test_a_body_that_is_no_json_object(web, raw, words):
    error = refused(web("POST", "/v1/chat/completions", raw=raw), 400, words)
    assert len(error["message"]) < 300


def test_a_template_that_refuses_says_so_without_a_path(web):
    error = refused(web("POST", "/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}, *transcript("Hi")]}), 400, "system prompt")
    assert "/" not in error["message"].replace("lm2-tiny/chat_template.jinja", "")
    stream = web("POST", "/v1/chat/completions", {"stream": True, "messages": [{"role": "system", "content": "x"}, *transcript("Hi")]})
    refused(stream, 400, "system prompt")  # before the first event there is still a status
