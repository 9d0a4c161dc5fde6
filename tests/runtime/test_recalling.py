"""Sessions that answer from what was said: what they look through, what they find, and that the conversation afterwards is as if it had only been heard."""

from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny_model
from oracle import standing
from tiny_model import recorded

from lm2 import Sampling, Session
from lm2.models.errors import PromptError
from lm2.models.recall import save_recall
from lm2.runtime.loading import load
from lm2.runtime.session import beside, recalling
from lm2.runtime.session.recalling import Passage, Recalling

GREEDY = Sampling(temperature=0.0)
TOLD = "the zebra eats plums"
ASK = "zebra eats plums"
OTHER = "my brother is a baker"


@pytest.fixture
def tiny(models):
    """A tiny model behind a recorder, with a recall that finds what has the same letters."""
    return recalls(models["gated"])


def recalls(model, **fields):
    return recorded(replace(model, recall=recall_kit.recall(model.config, **fields)))


def talked(model, seed=3, **fields):
    session = Session(model, seed=seed, **fields)
    for message in (TOLD, OTHER, "q7 w9"):
        session.hear(message, "fine")
    return session


# what is looked through


def looked(tokens=8, **fields):
    """A Recalling with a token a letter."""
    vocab = recall_kit.tiny_tokenizer.VOCAB
    config = recall_kit_config(vocab)
    return Recalling(recall_kit.recall(config, tokens=tokens, **fields), lambda text: list(text.replace("~", "").encode()) if text.strip(" ~") else [])


def recall_kit_config(vocab):
    import tiny as small

    return small.config(vocab=vocab, layers=2, memory_layers=(1,))


def said(*texts, role="user"):
    return [{"role": role, "content": text} for text in texts]


def texts(passages):
    return [(p.number, p.text) for p in passages]


def test_passages_are_what_the_user_said_oldest_first():
    transcript = [*said("one"), *said("an answer", role="assistant"), *said("[read a book: 900 tokens]"), *said("two")]
    assert texts(looked(64).passages(transcript, [1, 1, 2, 3])) == [(1, "one"), (3, "two")]
    almost = said("[read a book: many tokens]", "[read a book: 9 tokens] and more")
    assert len(looked(64).passages(almost, [1, 2])) == 2
    assert looked().passages([], []) == []


def test_what_was_said_again_is_the_newest():
    assert texts(looked(64).passages(said("one", "two", "one"), [1, 2, 3])) == [(2, "two"), (3, "one")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Ann ran. Bo sat. Cy", ["Ann ran.", "Bo sat.", "Cy"]),
        ("a. b. c", ["a. b. c"]),
        ("ab cd ef gh ij", ["ab cd ef", "gh ij"]),
        ("line\n\n\nnext", ["line", "next"]),
        ("aa bbbbbbbbccccccccdddd ee", ["aa", "bbbbbbbb", "cccccccc", "dddd ee"]),
        ("3.14 is it", ["3.14 is", "it"]),
        ("  \n\t ", []),
        ("~~ ~~~~~~~~~~", []),
        ("~~ ab", ["~~ ab"]),
    ],
)
def test_long_messages_are_looked_through_in_parts(text, parts):
    """Nine tokens: a blank and eight letters."""
    finder = looked(9)
    assert texts(finder.passages(said(text), [4])) == [(4, part) for part in parts]


ODD = {
    "without blanks": "我的狗叫布鲁诺。它喜欢在公园里追鸽子，" * 40,
    "thai": "แมวของฉันชื่อมะลิและมันชอบนอนบนหน้าต่าง" * 20,
    "emoji": "🦓🍑" * 200,
    "one word": "x" * 5000,
    "punctuation": "?!.;- " * 300,
    "many short words": "a " * 4000,
    "control characters": "a\x00b\x07c\u200b d\x1b[31m " * 50,
    "markers": "<|im_end|>\n<|im_start|>assistant\n" * 30,
}


@pytest.mark.parametrize("what", ODD)
def test_every_part_fits_and_nothing_is_left_out(what):
    """In any script: parts of at most as many tokens as the finder reads, with all that was said, in its order."""
    for tokens in (16, 64):
        parts = looked(tokens).passages(said(ODD[what]), [1])
        assert parts and all(0 < len(p.ids) <= tokens for p in parts)
        known = looked(tokens)._parts(ODD[what])
        assert "".join("".join(text for text, _ in known).split()) == "".join(ODD[what].split())


def test_cutting_takes_time_in_proportion():
    """Characters given to the tokenizer for a message of one sentence, or of one word: a fixed number for each of its own."""
    for unit in ("word ", "x", "字", "Yes. ", "a\n"):
        for size in (1 << 12, 1 << 16):
            given = []

            def encode(text, given=given):
                given.append(len(text))
                return list(text.encode())

            finder = Recalling(looked(64).recall, encode)
            finder.passages(said((unit * size)[:size]), [1])
            assert sum(given) < 10 * size


def test_the_newest_are_kept(monkeypatch):
    monkeypatch.setattr(recalling, "TOKENS", 20)
    found = looked(64).passages(said("oldest", "1234567", "7654321"), [1, 2, 3])
    assert texts(found) == [(2, "1234567"), (3, "7654321")]
    assert texts(looked(9).passages(said("aaaaaaaa bbbbbbbb cccccccc"), [1])) == [(1, "bbbbbbbb"), (1, "cccccccc")]


def test_texts_are_encoded_once():
    calls = []
    finder = Recalling(looked(64).recall, lambda text: calls.append(text) or list(text.encode()))
    transcript = said("one", "two")
    first = finder.passages(transcript, [1, 2])
    calls.clear()
    assert finder.passages(transcript, [1, 2]) == first and not calls
    assert texts(finder.passages(said("two", "three"), [2, 3])) == [(2, "two"), (3, "three")] and set(calls) == {" three"}
    assert set(finder._known) == {"two", "three"}
    calls.clear()
    finder.passages(said(*["four"] * 9, *["\n"] * 9), range(18))
    assert len(set(calls)) == 2 and len(calls) < 6
    calls.clear()
    finder.passages(said(*["four"] * 9, *["\n"] * 9), range(18))
    assert not calls


def test_a_message_longer_than_a_transcript_keeps(monkeypatch):
    """Out of a session file that somebody made: no more is read of it than of the longest message that was said."""
    given = []
    finder = Recalling(looked(64).recall, lambda text: given.append(len(text)) or list(text.encode()))
    long = "word " * 400_000
    assert len(finder.passages(said(long), [1])) == len(finder.passages(said(long[:70_000]), [1])) and sum(given) < 2_000_000
    assert not [p for p in finder.passages(said("x" * 70_000 + " end"), [1]) if "end" in p.text]


# what is found


class Scored:
    """A finder with given scores."""

    def __init__(self, scores, nothing):
        self.given = np.array(scores, np.float32), nothing

    def scores(self, message, passages):
        assert all(0 < len(p) <= 8 for p in (message, *passages))
        return self.given


NEAREST = {
    "the best": ([1.0, 9.0, 2.0], 3.0, dict(read=1), {1: 9.0}),
    "as many as are read, in the order they were said": ([9.0, 1.0, 9.5], 0.0, dict(read=2), {0: 9.0, 2: 9.5}),
    "of equals the oldest": ([5.0, 5.0, 5.0], 0.0, dict(read=2), {0: 5.0, 1: 5.0}),
    "all there are": ([5.0, -40.0, 3.0], 0.0, dict(read=9), {0: 5.0, 1: -40.0, 2: 3.0}),
    "nothing is nearer": ([1.0, 2.0, 0.0], 2.1, {}, {}),
    "as near as nothing": ([0.0, 2.0, 0.0], 2.0, dict(read=1), {1: 2.0}),
    "not by the margin": ([1.0, 3.0, 0.0], 2.0, dict(margin=1.5), {}),
    "by the margin": ([1.0, 3.5, 0.0], 2.0, dict(margin=1.5, read=1), {1: 3.5}),
    "by a margin below 0": ([1.0, 3.0, 0.0], 4.0, dict(margin=-1.5, read=1), {1: 3.0}),
}


@pytest.mark.parametrize("case", NEAREST)
def test_what_is_near(case):
    scores, nothing, fields, places = NEAREST[case]
    finder = looked(8, finds=Scored(scores, nothing), **fields)
    passages = [Passage(n, f"text {n}", (n + 1,) * 8) for n in range(3)]
    assert finder.nearest("who?", passages) == places
    assert finder.nearest("x" * 8, passages) == {} and finder.nearest("x" * 7, passages) == places
    assert finder.nearest("who?", []) == {}


CHOICE = {
    "the best": ([1.0, 9.0, 2.0], [0.0] * 3, {}, [1]),
    "in the order they were said": ([9.0, 1.0, 8.9], [0.0] * 3, dict(share=0.5), [0, 2]),
    "as many as most": ([5.0, 5.0, 5.0], [0.0] * 3, dict(most=2), [0, 1]),
    "those near the best": ([5.0, 4.0, 3.0], [0.0] * 3, dict(share=0.3), [0, 1]),
    "all with share 0": ([5.0, -40.0, 3.0], [0.0] * 3, dict(share=0.0), [0, 1, 2]),
    "the best alone with share 1": ([5.0, 4.999, 3.0], [0.0] * 3, dict(share=1.0), [0]),
    "the likeliest last": ([5.0, 4.0, 4.5], [0.0] * 3, dict(share=0.1, near=0.9), [1, 2, 0]),
    "those about as likely as said": ([5.0, 4.0, 4.9], [0.0] * 3, dict(share=0.1, near=0.5), [1, 0, 2]),
    "of equals as many as most, the oldest": ([5.0, 5.0, 5.0], [0.0] * 3, dict(most=2, near=1.0), [0, 1]),
    "what reading says counts": ([5.0, 4.0, 3.0], [0.1, 4.0, 0.2], {}, [1]),
    "as much as it is trusted": ([5.0, 4.0, 3.0], [0.1, 4.0, 0.2], dict(trust=0.1, share=0.6), [0]),
    "what is in doubt is left out": ([9.0, 4.0, 3.0], [-0.1, 0.0, -3.0], {}, [1]),
    "at another doubt": ([9.0, 4.0, 3.0], [-0.1, 2.0, -3.0], dict(doubt=-0.5), [0]),
    "what is in doubt takes nobody's place": ([9.0, 4.0, 3.0], [-0.1, 1.0, 2.0], dict(most=2), [1, 2]),
    "all in doubt": ([9.0, 4.0, 3.0], [-0.1, -2.0, -3.0], {}, []),
    "of the surest the nearest": ([5.0, 4.0, 3.0], [8.0, 30.0, 0.2], {}, [0, 1]),
    "nothing was read": ([], [], {}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICE)
def test_what_is_chosen(case):
    scores, odds, fields, places = CHOICE[case]
    recall = recall_kit.recall(recall_kit_config(40), **({"share": 0.2, "trust": 1.0, "doubt": 0.0} | fields))
    assert recall.choice(scores, odds) == places


def test_capitals_and_blanks_make_no_difference():
    finder = looked(64)
    assert finder.ids("  Zebra ") == finder.ids("zebra") == tuple(b" zebra")
    passages = finder.passages(said("The ZEBRA eats plums", OTHER), [1, 2])
    near = finder.nearest("zebra EATS plums", passages)
    assert max(near, key=near.__getitem__) == 0 and passages[0].text == "The ZEBRA eats plums"


# a session


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


def hear_ids(session, message, tokens):
    """`hear` with the tokens of an answer, which a text might not give back."""
    real = session.model
    text = real.text.decode(tokens, skip_special=True)
    session.model = replace(real)
    object.__setattr__(session.model, "encode", lambda t, **_: list(tokens) if t == text else real.encode(t, **_))
    session.hear(message, text)
    session.model = real


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


# files and backends


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model's folder with a recall of its own in it."""
    from lm2.models.checkpoints.adapter import folder_key
    from lm2.models.layout import open_folder

    folder = tiny_model.make(tmp_path_factory.mktemp("recalling") / "model", ends=())
    opened = open_folder(folder)
    made = folder.parent / "recall"
    save_recall(made, opened.config, recall_kit.recall(opened.config, backbone=("tiny", folder_key(opened))))
    for file in made.iterdir():
        file.rename(folder / file.name)
    return folder


def test_a_model_folder_with_a_recall(folders, tmp_path):
    from lm2.models.errors import ModelFileError

    model = replace(load(folders, "torch", device="cpu", threads=1), eos=frozenset())
    assert model.recall is not None
    assert load(folders, "torch", device="cpu", threads=1, memory=False).recall is None
    import shutil

    other = shutil.copytree(folders, tmp_path / "other")
    recall_kit.changed(other, backbone={"name": "somebody else's", "key": "1" * 64})
    with pytest.raises(ModelFileError, match=r"recall.json was trained on somebody else's \(backbone 111111111111\), .* take the file away, or train one"):
        load(other, "torch", device="cpu", threads=1)


@pytest.fixture(scope="module")
def wanted(folders):
    return conversation(folders, "torch", folders)


def conversation(folder, backend, source):
    from lm2.models.config import read_json
    from lm2.models.recall import open_recall

    assert read_json(source / "recall.json")
    model = load(folder, backend, device="cpu", threads=0 if backend == "mlx" else 1)
    recall = open_recall(source, model.config)
    session = talked(replace(model, eos=frozenset(), recall=recall), sampling=GREEDY)
    out = []
    for message in (ASK, OTHER + "!", "0000", ASK):
        session.say(message, 14)
        out.append((session.reply.tokens, texts(session.recalled)))
    out.append(standing_of(session))
    return out


def standing_of(session):
    return session.at.tokens + session.at.pending, session.at.carried, session.at.folds


@pytest.mark.parametrize("side", ["static", "mlx", "onnx"])
def test_every_backend_answers_the_same(folders, wanted, side, tmp_path):
    assert [bool(r) for _, r in wanted[:4]] == [True, True, False, True]
    if side == "static":
        import torch

        from lm2.models.layout import open_folder
        from lm2.models.recall import open_recall
        from lm2.models.weights import load_model
        from lm2.runtime.backends.torch_backend import TorchBackend

        model = load(folders, "torch", device="cpu", threads=1)
        static = TorchBackend(load_model(open_folder(folders), torch.device("cpu"), torch.float32), static=True)
        session = talked(replace(model, backend=static, eos=frozenset(), recall=open_recall(folders, model.config)), sampling=GREEDY)
        got = []
        for message in (ASK, OTHER + "!", "0000", ASK):
            session.say(message, 14)
            got.append((session.reply.tokens, texts(session.recalled)))
        assert [*got, standing_of(session)] == wanted
        return
    if side == "mlx":
        pytest.importorskip("mlx.core")
        assert conversation(folders, "mlx", folders) == wanted
        return
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from lm2.export.export import export_model
    from lm2.export.options import Options

    for options in (Options(), Options(window=512)):
        export_model(folders, tmp_path / f"{options.window}", options)
        assert conversation(tmp_path / f"{options.window}", "onnx", folders) == wanted
    export_model(folders, tmp_path / "64", Options(window=64))
    assert not any(recalled for _, recalled in conversation(tmp_path / "64", "onnx", folders)[:4])


# what is read beside


class Torn:
    """A backend for which the unsaid word's first token is the likeliest beginning, and yet less likely than all others together."""

    def __init__(self, backend, unsaid):
        self.real, self.unsaid = backend, unsaid

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, window = self.real.extend(tokens, window, all_logits)
        logits = np.zeros_like(logits)
        logits[..., self.unsaid] = 2.0
        return logits, window


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_answered_never_begins_as_if_nothing_were_told(models, temperature):
    model = recalls(models["gated"], trust=1.0, doubt=0.0)
    unsaid = model.encode(model.recall.unsaid, plain=True)[0]
    model = replace(model, backend=Torn(model.backend, unsaid))
    for seed in range(1 if not temperature else 20):
        session = talked(model, seed=seed, sampling=Sampling(temperature=temperature))
        session.say(ASK, 4)
        assert [p.number for p in session.recalled] == [1], "likelier answered than not"
        assert session.reply.tokens[0] != unsaid


def test_reading_what_was_said_tells_that_something_was_fed(models):
    """So that whoever waits can be asked whether anybody still does, as for every other forward pass."""
    session, fed = talked(recalls(models["gated"])), []
    session.memory()
    session.feeder.on_feed = fed.append
    stream = session.stream(ASK, 4)
    next(stream)
    assert fed, "the passages were read, and nobody heard of it"


class Doubting:
    """A backend for which an answer begins with `unsaid` after every window but the believed ones: numbers of calls that feed more than a token."""

    def __init__(self, backend, unsaid, believed):
        self.real, self.unsaid, self.believed, self.read = backend, unsaid, believed, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, window = self.real.extend(tokens, window, all_logits)
        if np.size(tokens) > 1:
            logits = np.zeros_like(logits)
            logits[..., self.unsaid] = -2.0 if self.read in self.believed else 50.0
            self.read += 1
        return logits, window


NEAR = {0: 1.0, 1: 5.0, 2: 4.0, 3: 0.0}


@pytest.mark.parametrize(
    ("believed", "fields", "found", "read"),
    [
        ({0, 1, 2, 3}, {}, [1], 1),
        ({1, 2, 3}, {}, [2], 2),
        ({2}, {}, [0], 3),
        ({3}, {}, [3], 4),
        ((), {}, None, 4),
        ({0, 1, 2, 3}, dict(share=0.3), [1, 2], 3),
        ({0, 2, 3}, dict(share=0.3), [1], 2),
        ({0, 1, 2, 3}, dict(share=0.0), [0, 1, 2, 3], 5),
        ({0, 1, 2, 3}, dict(trust=0.1), [1], 1),
        ({0, 1, 2, 3}, dict(trust=1.0), [1], 2),
        ({0, 1, 2, 3}, dict(trust=10.0), [1], 4),
    ],
)
def test_reading_ends_where_no_other_could_come_along(models, believed, fields, found, read):
    """The nearest first; and what it comes to is what reading all of them would."""
    model = models["gated"]
    recall = recall_kit.recall(model.config, **({"share": 0.5, "trust": 0.0, "doubt": 0.0} | fields))
    backend, passages = Doubting(model.backend, 7, believed), [Passage(n, f"text {n}", (n,)) for n in range(4)]
    side = beside.answering(backend, recall, 7, lambda text: list(text.encode()), passages, NEAR, "who?")
    assert (side and [p.number for p in side.found]) == found and backend.read == read
