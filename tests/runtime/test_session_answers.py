"""How answers begin and end: end tokens, stop strings, limits, streaming, plain text."""

from dataclasses import replace

import pytest
from oracle import chatml, check, oracle, standing
from tiny_tokenizer import IM_END

from lm2 import Sampling, Session
from lm2.models.errors import PromptError


def test_end_of_turn_token(gated):
    tokens = said(gated, "hi", 30)
    at = next(i for i, t in enumerate(tokens) if i > 3 and t not in tokens[:i])
    model = replace(gated, eos=frozenset({tokens[at]}))
    session = Session(model, seed=9)
    session.say("hi", 30)
    assert session.reply.finish == "stop" and session.reply.tokens == tokens[:at]
    assert standing(session)[1][-2:] == (IM_END, 10) and tokens[at] not in standing(session)[1][len(chatml([("user", "hi")])) :]
    check(session)
    plain = Session(model, seed=9)
    ignored = "".join(plain.complete("hi", 30, ignore_eos=True))
    assert len(plain.reply.tokens) == 30 and plain.reply.finish == "length" and ignored == plain.reply.text


def said(model, message, n):
    session = Session(model, seed=9)
    session.say(message, n)
    assert session.reply.finish == "length" and len(session.reply.tokens) == n
    return session.reply.tokens


def test_stop_string(gated):
    session = Session(gated, seed=9)
    whole = session.say("hi", 40)
    stop = whole[10:13]
    other = Session(gated, seed=9)
    text = other.say("hi", 40, stop=["never there", stop])
    assert text == whole[: whole.index(stop)] == other.reply.text == other.transcript[-1]["content"]
    assert other.reply.finish == "stop-string" and len(other.reply.tokens) < 40
    check(other)


@pytest.mark.parametrize("stop", [[""], "text", ["x" * 5000], [1]])
def test_bad_stop_strings_change_nothing(gated, stop):
    session = Session(gated, seed=9)
    session.say("hi", 3)
    before = standing(session)
    for begin in (session.stream, session.complete):
        with pytest.raises(PromptError, match="stop"):
            list(begin("hello", 5, stop))
        assert standing(session) == before and len(session.snapshots) == 1 and len(session.transcript) == 2


def test_pieces_are_the_whole_answer(model):
    for seed in range(3):
        pieces = list(Session(model, seed=seed).stream("hello", 50))
        session = Session(model, seed=seed)
        assert "".join(pieces) == session.say("hello", 50) == session.reply.text == session.transcript[-1]["content"]
        assert all(pieces) and session.reply.text == model.text.decode(session.reply.tokens, skip_special=True)


def test_same_seed_same_answer_other_seed_another(gated):
    texts = [Session(gated, seed=s).say("hello", 20) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [Session(gated, sampling=Sampling(0.0), seed=s).say("hello", 20) for s in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("message", ["", " ", "\n\t"])
def test_empty_message(gated, message):
    with pytest.raises(PromptError, match="empty"):
        Session(gated).stream(message)


def test_nothing_to_continue(gated):
    session = Session(gated, seed=1)
    with pytest.raises(PromptError, match="nothing to continue"):
        list(session.complete("", 3))
    assert session.at.seen == 0
    "".join(session.complete("a", 3))
    assert len("".join(session.complete("", 3)).encode()) >= 3 and session.reply.prompt_tokens == 0
    check(session)


def test_plain_text_over_many_chunks(model):
    session = Session(model, seed=1, overlap=5)
    rule = oracle(session, 5)
    for prompt, n in (("abc" * 30, 40), ("more", 100), ("x", 1)):
        "".join(session.complete(prompt, n))
        rule.plain(prompt.encode(), session.reply.tokens)
        assert standing(session) == rule.standing()
    assert session.at.seen == 90 + 40 + 4 + 100 + 1 + 1 and not session.transcript
    check(session)
