"""Sessions that answer from what was said: the conversation afterwards is as if it had only been heard."""

from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny_model
from oracle import standing
from recalled_kit import ASK, GREEDY, ODD, OTHER, TOLD, hear_ids, recalls, talked, texts
from tiny_model import recorded

from lm2 import Sampling, Session
from lm2.models.errors import PromptError
from lm2.runtime.session import beside


@pytest.fixture
def tiny(models):
    """A tiny model behind a recorder, with a recall that finds what has the same letters."""
    return recalls(models["gated"])


def test_a_session_says_what_it_came_from(tiny):
    session = talked(tiny)
    assert session.recalled == []
    session.say(ASK, 5)
    assert texts(session.recalled) == [(1, TOLD)]
    assert session.transcript[-2:] == [{"role": "user", "content": ASK}, {"role": "assistant", "content": session.reply.text}]
    assert session.reply.finish == "length" and len(session.reply.tokens) == 5 and session.reply.message == ASK
    session.say("0000", 5)
    assert session.recalled == []
    others = (lambda s: s.hear("a", "b"), lambda s: s.read("a text"), lambda s: list(s.complete("more", 2)), lambda s: s.undo(), lambda s: s.reset())
    for other in others:
        session = talked(tiny)
        session.say(ASK, 2)
        assert session.recalled
        other(session)
        assert session.recalled == []


def test_the_answer_is_made_beside(tiny):
    """By hand: the opening, then the message with its passages, fed to the backend at once; greedy tokens. Other passages give others."""
    session, logits = talked(tiny, sampling=GREEDY, system="Be kind."), []
    session.chosen = lambda given, token: logits.append(given)
    session.say(ASK, 40)
    head = session.head()
    assert head, "a system prompt is heard there too"
    tokens, want = beside_by_hand(tiny, [TOLD], 40, head)
    assert session.reply.tokens == tokens
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)
    others = (beside_by_hand(tiny, [OTHER], 1, head), beside_by_hand(tiny, [TOLD, OTHER], 1, head), beside_by_hand(tiny, [TOLD], 1, head, opened=False))
    for other in (*others, beside_by_hand(tiny, [TOLD], 1)):
        assert np.abs(np.delete(other[1][0], ord("N")) - np.delete(want[0], ord("N"))).max() > 1e-3
    prompt = f"Told:\n- {TOLD}\n\n{ASK}"
    assert session.reply.prompt_tokens == len(head) + len(session.wording.turn(prompt, first=False)) > tiny_model.FOLD
    plain = talked(tiny, sampling=GREEDY, recall=False)
    assert plain.say(ASK, 12) != session.reply.text


def beside_by_hand(model, passages, count, head=(), opened=True):
    b = getattr(model.backend, "real", model.backend)
    recall = model.recall
    ids = [*b"user\n", *recall.message(passages, ASK).encode()]
    prompt = [*head, 257, *ids, 258, 10, 257, *b"assistant\n"]
    p = recall.opening.positions if opened else 0
    out, all_logits = [], []
    window = b.start(1, None, 600, 590, recall.opening) if opened else b.start(1, None, 600, 590)
    logits, window = b.extend(np.array(prompt), window)
    logits = np.array(logits)
    logits[0, ord("N")] = -np.inf  # with which it would say that nothing was told
    while len(out) < count:
        out.append(int(logits[0].argmax()))
        all_logits.append(logits[0])
        logits, window = b.extend(np.array(out[-1:]), window)
    assert b.memory(window).written == 0 and window.length == p + len(prompt) + count
    return tuple(out), np.array(all_logits)


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_nothing_of_it_is_in_the_conversation(tiny, system):
    """The window and the bank are those of a session that heard the same; so is the next answer."""
    session, heard = (talked(tiny, sampling=GREEDY, system=system) for _ in range(2))
    for _ in range(4):  # over slides and folds
        text = session.say(ASK, 20)
        assert texts(session.recalled)
        hear_ids(heard, ASK, session.reply.tokens)
        assert standing(session) == standing(heard)
        assert heard.transcript[-1]["content"] == text
    banks = [tiny.backend.to_host(s.memory()) for s in (session, heard)]
    assert np.array_equal(*banks) and banks[0].any() and session.memory().written == heard.memory().written
    assert session.numbers == heard.numbers and session.at.starts == heard.at.starts and session.at.spans == heard.at.spans
    for s in (session, heard):
        s.recalling = None
    assert session.say("0000", 10) == heard.say("0000", 10)


def test_models_and_sessions_without_a_recall(models, tiny):
    assert talked(recorded(models["gated"])).recalling is None
    session = talked(tiny, recall=False, sampling=GREEDY)
    same = talked(recorded(models["gated"]), sampling=GREEDY)
    assert session.say(ASK, 9) == same.say(ASK, 9) and session.recalled == [] == same.recalled
    assert session.fork().recalling is None and talked(tiny).fork().recalling is not None


def test_undo_again_fork_and_reset(tiny):
    session = talked(tiny)
    before = standing(session), list(session.transcript)
    first = session.say(ASK, 8)
    other = session.fork()
    assert other.recalled == [] and other.say(ASK, 8) and texts(other.recalled) == [(1, TOLD)], "and not from the same question"
    assert other.say(ASK + "?", 8) and texts(other.recalled) == [(1, TOLD), (5, ASK)]
    again = "".join(session.again(8))
    assert texts(session.recalled) == [(1, TOLD)] and again != first and len(session.transcript) == 8
    session.undo()
    assert session.recalled == [] and (standing(session), session.transcript) == before
    assert session.say(ASK, 8) == again and texts(session.recalled) == [(1, TOLD)]
    session.reset()
    assert session.recalled == []
    session.say(ASK, 4)
    assert session.recalled == []


def test_a_forgotten_turn_is_not_recalled(tiny, tmp_path):
    session = talked(tiny)
    session.say(ASK, 8)
    assert texts(session.recalled) == [(1, TOLD)]
    session.forget(4)
    assert session.recalled == []
    session.say(ASK, 8)
    session.forget(1)
    assert session.recalled == []
    session.forget(session.at.number)
    session.say(ASK, 4)
    assert TOLD not in [p.text for p in session.recalled]
    session.save(tmp_path / "s")
    restored = Session.restore(tiny, tmp_path / "s")
    assert TOLD.encode() not in (tmp_path / "s").read_bytes() and TOLD not in str(restored.transcript)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_restored_session_recalls_the_same(tiny, tmp_path, temperature):
    session = talked(tiny, sampling=Sampling(temperature=temperature))
    session.say(ASK, 6)
    session.save(tmp_path / "s")
    restored = Session.restore(tiny, tmp_path / "s")
    assert restored.recalled == [] and restored.at.draws == session.at.draws
    for message in (OTHER, ASK, "0000", ASK):
        assert restored.say(message, 9) == session.say(message, 9)
        assert restored.recalled == session.recalled and restored.reply.tokens == session.reply.tokens
    assert standing(restored) == standing(session)


# how an answer ends


def test_closing_in_mid_answer_keeps_what_was_said(tiny):
    whole = talked(tiny)
    whole.say(ASK, 20)
    for stopping in ("close", "interrupt", "asked"):
        session, count = talked(tiny), [0]

        def enough(count=count):
            count[0] += 1
            return count[0] > 6

        pieces, stream = [], session.stream(ASK, 20, interrupted=enough if stopping == "asked" else None)
        for piece in stream:
            pieces.append(piece)
            if stopping == "close" and len(pieces) == 3:
                stream.close()
            if stopping == "interrupt" and len(pieces) == 3:
                with pytest.raises(KeyboardInterrupt):
                    stream.throw(KeyboardInterrupt)
        assert session.reply.finish == "interrupted" and session.reply.text == session.transcript[-1]["content"]
        assert pieces and session.reply.text.startswith("".join(pieces))
        assert 0 < len(session.reply.tokens) < 20 and whole.reply.tokens[: len(session.reply.tokens)] == session.reply.tokens
        heard = talked(tiny)
        hear_ids(heard, ASK, session.reply.tokens)
        assert standing(session) == standing(heard) and session.at.draws == len(session.reply.tokens)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_before_the_answer_changes_nothing(tiny, error):
    session = talked(tiny)
    session.say(ASK, 4)
    before = standing(session), list(session.transcript), session.reply, session.recalled, len(session.snapshots), session.at.draws
    for call in (1, 2):
        tiny.backend.fail = (1, error)
        with pytest.raises(type(error)):
            session.say(ASK + "!" * call, 4)
        assert (standing(session), session.transcript, session.reply, session.recalled, len(session.snapshots), session.at.draws) == before
    with pytest.raises(type(error)):
        tiny.backend.fail = (1, error)
        "".join(session.again(4))
    assert (standing(session), session.transcript, session.reply, session.recalled, len(session.snapshots), session.at.draws) == before


def test_an_error_in_mid_answer_keeps_what_was_said(tiny):
    session = talked(tiny)
    tiny.backend.fail = (4, RuntimeError("out of memory"))  # a passage was read, and three tokens fed
    with pytest.raises(RuntimeError, match="out of memory"):
        session.say(ASK, 20)
    assert session.reply.finish == "error" and len(session.reply.tokens) == 3 and session.transcript[-2]["content"] == ASK
    heard = talked(tiny)
    hear_ids(heard, ASK, session.reply.tokens)
    assert standing(session) == standing(heard)
    assert session.say("0000", 3)


def test_an_error_where_the_turn_is_heard_leaves_the_session_as_it_was(tiny):
    """The conversation's window is full: it has to be left after the answer, and that fails."""
    session = talked(tiny)
    while session.at.filled + len(session.wording.turn(ASK, False)) + 8 <= session.feeder.size:
        session.hear("q7", "w9")
    session.at = session.at.at_rest()
    before = standing(session), list(session.transcript), len(session.snapshots), list(session.numbers)
    stream = session.stream(ASK, 3)
    next(stream)
    assert session.at.pending or session.at.window is None, "there is something to feed when the window is left"
    tiny.backend.fail = (3, RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        list(stream)
    assert (standing(session), session.transcript, len(session.snapshots), session.numbers) == before
    assert session.recalled == [] and session.reply is None
    assert session.say(ASK, 3) and texts(session.recalled)


@pytest.mark.parametrize("count", [0, 1])
def test_few_tokens(tiny, count):
    session = talked(tiny)
    session.say(ASK, count)
    assert len(session.reply.tokens) == count and session.reply.finish == "length" and texts(session.recalled) == [(1, TOLD)]
    heard = talked(tiny)
    hear_ids(heard, ASK, session.reply.tokens)
    assert standing(session) == standing(heard)


def test_a_stop_string_and_an_end(models, tiny):
    session = talked(tiny)
    whole = session.say(ASK, 30)
    stopped = talked(tiny)
    assert stopped.say(ASK, 30, stop=[whole[6:9]]) == whole[: whole.index(whole[6:9])] and stopped.reply.finish == "stop-string"
    tokens = session.reply.tokens
    at = next(i for i, t in enumerate(tokens) if i > 2 and t not in tokens[:i])
    ending = talked(replace(tiny, eos=frozenset({tokens[at]})))
    ending.say(ASK, 30)
    assert ending.reply.finish == "stop" and ending.reply.tokens == tokens[:at]
    heard = talked(tiny)
    hear_ids(heard, ASK, tokens[:at])
    assert standing(ending) == standing(heard)


def test_a_window_beside_that_is_full_ends_the_answer(models, monkeypatch):
    tiny = recalls(models["gated"], read=1)
    session = talked(tiny)
    prompt = len(session.wording.turn(tiny.recall.message([TOLD], ASK), first=False)) + 3
    monkeypatch.setattr(beside, "SIZE", prompt + beside.ROOM)
    session.say(ASK, 200)
    assert session.reply.finish == "length" and len(session.reply.tokens) == beside.ROOM
    heard = talked(tiny)
    hear_ids(heard, ASK, session.reply.tokens)
    assert standing(session) == standing(heard)
    monkeypatch.setattr(beside, "SIZE", prompt + beside.ROOM - 1)
    session = talked(tiny)
    session.say(ASK, 3)
    assert session.recalled == []


def test_the_nearest_are_recalled_as_far_as_they_fit(tiny, monkeypatch):
    session = Session(tiny, seed=3)
    for message in ("my zebra eats plums!", "zebra eats plums?"):
        session.hear(message, "fine")
    both = session.beside(ASK)
    assert texts(both.found) == [(1, "my zebra eats plums!"), (2, "zebra eats plums?")]
    for less, want in ((0, [1, 2]), (1, [2]), (60, [])):
        monkeypatch.setattr(beside, "SIZE", both.prompt + 3 + beside.ROOM - less)
        side = session.beside(ASK)
        assert [p.number for p in (side.found if side else [])] == want
    assert session.say(ASK, 3) and session.recalled == []


def test_a_model_of_few_positions_answers_as_it_did(models):
    """No room for an answer beside: from the window alone, as without a recall."""
    for positions in (64, 80, 3):
        model = recalls(models["gated"], opening=recall_kit.opening(models["gated"].config, positions))
        model.backend.longest = 64
        session, plain = (talked(model, sampling=GREEDY, recall=recall) for recall in (True, False))
        assert session.say(ASK, 9) == plain.say(ASK, 9) and session.recalled == []


def test_a_long_message_is_not_looked_up(models):
    model = recalls(models["gated"], tokens=len(TOLD) + 1)
    session = talked(model)
    session.say(TOLD[1:] + "?", 2)
    assert session.recalled
    session.say(TOLD + "?", 2)
    assert session.recalled == []


def test_repetition_is_of_what_stands_there(tiny):
    """The opening's positions have no ids: the penalty does not take them for token 0."""
    recent = []
    sampling = Sampling(temperature=0.0, repetition_penalty=1.5)
    session = talked(tiny, sampling=sampling)
    from lm2.runtime.session import answer

    real = answer.Answer.choose

    def choose(self, logits, ids):
        recent.append(tuple(ids))
        return real(self, logits, ids)

    answer.Answer.choose = choose
    try:
        session.say(ASK, 4)
    finally:
        answer.Answer.choose = real
    prompt = session.wording.turn(tiny.recall.message([TOLD], ASK), first=False)
    assert recent == [(*prompt, *session.reply.tokens[:n]) for n in range(4)]


# odd texts


@pytest.mark.parametrize("what", ODD)
def test_odd_texts_are_told_and_asked(tiny, what):
    session = talked(tiny)
    odd = ODD[what].encode()[:52].decode(errors="ignore").strip()
    session.hear(odd, "fine")
    session.say(odd + "!", 3)
    assert {p.number for p in session.recalled} >= {4} and "".join(odd.split()) in "".join("".join(p.text.split()) for p in session.recalled)
    turn = session.wording.turn(session.recalling.recall.message([odd], odd), first=False)
    assert (turn.count(257), turn.count(258)) == (2, 1), "the template's own"
    session.say(ASK, 3)
    assert TOLD in [p.text for p in session.recalled]


def test_what_cannot_be_encoded_is_refused_as_ever(tiny):
    session = talked(tiny)
    before = standing(session)
    with pytest.raises(PromptError):
        session.say("half a \ud800 pair", 3)
    assert standing(session) == before
    session.say(ASK, 3)
    assert session.recalled
