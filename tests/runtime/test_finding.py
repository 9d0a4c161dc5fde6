"""What sessions look through for what was said, and what they find."""

import numpy as np
import pytest
import recall_kit
from recalled_kit import ODD, OTHER, said, texts

from lm2.models.recall import SURE, Found, Use
from lm2.runtime.session import recalling
from lm2.runtime.session.recalling import Passage, Recalling


def looked(tokens=8, **fields):
    """A Recalling with a token a letter."""
    vocab = recall_kit.tiny_tokenizer.VOCAB
    config = recall_kit_config(vocab)
    return Recalling(recall_kit.recall(config, tokens=tokens, **fields), lambda text: list(text.replace("~", "").encode()) if text.strip(" ~") else [])


def recall_kit_config(vocab):
    import tiny as small

    return small.config(vocab=vocab, layers=2, memory_layers=(1,))


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
    assert set(finder._seen.parts) == {"two", "three"}
    calls.clear()
    finder.passages(said(*["four"] * 9, *["\n"] * 9), range(18))
    assert len(set(calls)) == 2 and len(calls) < 6
    calls.clear()
    finder.passages(said(*["four"] * 9, *["\n"] * 9), range(18))
    assert not calls


def conversation(*texts):
    """What a person and the model say by turns."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)], [n // 2 + 1 for n in range(len(texts))]


@pytest.mark.parametrize(
    ("answer", "before"),
    [
        ("Sure. Which film\n shall I find?", "shall I find?"),
        ("It costs 3.50 now. How many tickets? ", "How many tickets?"),
        ("Which film?  And where to? It is late.", ""),
        ("All right.", ""),
        ("", ""),
        ("哪部电影？", "哪部电影？"),
        ("a " * 40 + "?", ""),
    ],
)
def test_a_reply_goes_with_what_it_was_said_to(answer, before):
    """The question that the model's answer before it ends with, if that is short; of a long reply to the first part alone."""
    finder = looked(64)
    long = " ".join(f"Dogman {n} please." for n in range(9))
    first, *parts = finder.passages(*conversation("hello", answer, long, "Why?"))
    assert (first.before, first.whole, first.around) == ("", "hello", ())
    assert len(parts) == 3 and parts[0].before == before and not any(p.before or p.around for p in parts[1:])
    assert parts[0].whole == (f"{before} {parts[0].text}" if before else parts[0].text) and parts[0].text.startswith("Dogman 0 please.")
    assert parts[0].around == (finder.ids(parts[0].whole)[-64:] if before else ())


def test_a_reply_is_found_by_what_it_was_said_to():
    """By finder and encoder and read with it; the same reply to nothing is not."""
    reader = Reading(4, 0.5, -9.0, 9.0)
    sharp, encoder = seen_again(4, reader=reader, margin=-1e3)
    passages = sharp.passages(*conversation("hello", "which fruit is it?", "plums please", "fine", "figs please", "fine"))
    near = sharp.nearest("which fruit", passages)
    assert max(near, key=near.get) == 1 and near[1] > near[2] + 0.1
    assert "which fruit is it? plums please" in encoder.given[0] and "figs please" in encoder.given[0]
    sharp.read("which fruit", passages, near)
    assert ("which fruit is it?", "plums please") in reader.given[0] and ("", "figs please") in reader.given[0]
    bare = [p._replace(before="", around=()) for p in passages]
    alone = seen_again(4, margin=-1e3)[0].nearest("which fruit", bare)
    assert near[1] > alone[1] + 0.1 and near[2] == alone[2]


def test_questions_before_replies_are_encoded_once():
    calls = []
    finder = Recalling(looked(64).recall, lambda text: calls.append(text) or list(text.encode()))
    talked = conversation("hello", "Which fruit?", "plums please", "And? " * 40 + "?", "figs please", "fine")
    first = finder.passages(*talked)
    assert first[1].before == "Which fruit?" and " which fruit? plums please" in calls
    calls.clear()
    assert finder.passages(*talked) == first and not calls


def test_the_same_reply_to_something_else_is_another():
    transcript, numbers = conversation("hello", "Tea?", "yes", "Milk?", "yes", "Tea?", "yes", "fine")
    assert [(p.number, p.before) for p in looked(64).passages(transcript, numbers)] == [(1, ""), (3, "Milk?"), (4, "Tea?")]


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


class Looking:
    """An encoder with a vector for each word: the words that two texts share are near. Notes what it was given."""

    weight, among, source = 10.0, 2, {}

    def __init__(self):
        self.given = []

    def vectors(self, texts):
        self.given.append(list(texts))
        words = [[sum(map(ord, word)) % 97 for word in text.split()] for text in texts]
        return [np.eye(97, dtype=np.float32)[w] for w in words]


def seen_again(among=2, **fields):
    encoder = Looking()
    encoder.among = among
    return looked(64, encoder=encoder, **fields), encoder


def test_an_encoder_looks_at_what_the_finder_likes():
    """The finder likes what shares most letters; of these the one with the most words of the message is the nearest, and what was left out never is read."""
    transcript = said("zebras eatz", "a brother bakes", "zebra eatsss plumss", "zebra eats nothing")
    plain, (sharp, encoder) = looked(64), seen_again(3)
    passages = plain.passages(transcript, [1, 2, 3, 4])
    by_letters, both = plain.nearest("zebra eats plums", passages), sharp.nearest("zebra eats plums", passages)
    assert max(by_letters, key=by_letters.get) == 2 and max(both, key=both.get) == 3
    assert len(both) == 3 and 1 not in both
    assert encoder.given == [["zebra eats plums", *(passages[i].text for i in sorted(by_letters, key=lambda i: -by_letters[i])[:3])]]


def test_what_asks_for_nothing_told_costs_no_encoder():
    sharp, encoder = seen_again(margin=1e3)
    assert sharp.nearest("zebra eats plums", sharp.passages(said("zebra eats plums now"), [1])) == {} and encoder.given == []


def test_vectors_are_kept_as_long_as_what_they_are_of(monkeypatch):
    sharp, encoder = seen_again(8)
    both = sharp.passages(said("zebra eats plums", "zebra eats figs"), [1, 2])
    for _ in range(2):
        sharp.nearest("zebra eats what", both)
    assert encoder.given[1] == ["zebra eats what"]
    sharp.nearest("zebra eats what", both[:1])  # the other was forgotten
    assert sharp.nearest("zebra eats what", both) and encoder.given[3] == ["zebra eats what", "zebra eats figs"]
    monkeypatch.setattr(recalling, "VECTORS", 1)
    sharp.nearest("zebra eats what", both)
    assert len(sharp._vectors) == 1


class Reading:
    """A reader that finds the last word of each message, as sure as it is long. use as given; notes what it read."""

    def __init__(self, *use):
        self.use, self.given = Use(*use), []

    def read(self, question, messages, before=()):
        self.given.append(list(messages) if not any(before) else list(zip(before, messages, strict=True)))
        return [Found(m.split()[-1], float(len(m.split()[-1])) - 4) for m in messages]


def test_a_reader_reads_what_is_near():
    """Of the nearest `among` those that it doubts are out; nearness counts beside what it read; as many are left as an answer reads."""
    transcript = said("zebra eats plums", "zebra eats figs", "zebra eats fig", "zebra eats a", "my brother bakes")
    plain, reader = looked(64, read=2), Reading(4, 0.5, -1.0, 1.0)
    sharp = looked(64, read=2, reader=reader)
    passages = sharp.passages(transcript, [1, 3, 5, 7, 9])
    assert len(plain.nearest("zebra eats what", passages)) == 2
    near = sharp.nearest("zebra eats what", passages)
    assert len(near) == 4 and reader.given == []
    kept, words, sure = sharp.read("zebra eats what", passages, near)
    told = {i: near[i] + 0.5 * (len(passages[i].text.split()[-1]) - 4) for i in near if len(passages[i].text.split()[-1]) >= 3}
    best = sorted(sorted(told, key=lambda i: -told[i])[:2])
    assert list(kept) == best and kept == {i: told[i] for i in best}
    assert words == {i: passages[i].text.split()[-1] for i in best}
    assert sure == {i for i in best if len(words[i]) >= 5} and 0 < len(sure) < len(best)
    assert reader.given == [[passages[i].text for i in near]]


def test_a_reader_that_doubts_all_leaves_none():
    sharp = looked(64, reader=Reading(4, 0.5, 50.0, 60.0))
    passages = sharp.passages(said("zebra eats plums"), [1])
    near = sharp.nearest("zebra eats what", passages)
    assert near and sharp.read("zebra eats what", passages, near) == ({}, {}, frozenset())


def test_what_is_read_counts_for_a_bound():
    sharp = looked(64, reader=Reading(4, 1.0, -1e3, 1e3))
    passages = sharp.passages(said("zebra eats " + "x" * 40), [1])
    near = sharp.nearest("zebra eats what", passages)
    assert sharp.read("zebra eats what", passages, near)[0][0] == near[0] + SURE


def test_a_short_message_is_there_after_what_was_said_before_it():
    """Once by itself, once with that; not after a question, a long message or one that was forgotten, and not where no reader tells the two apart."""
    sharp = looked(64, reader=Reading(4, 0.5, -9.0, 9.0))
    transcript, numbers = conversation("plumber at nine", "ok", "no, ten past", "ok", "twenty letters of it", "ok", "Why?", "ok", "no idea", "ok", "a" * 60, "ok", "right", "ok")
    passages = sharp.passages(transcript, numbers)
    assert [(p.number, p.text, p.before) for p in passages if p.after] == [(2, "no, ten past", "plumber at nine"), (4, "Why?", "twenty letters of it")]
    assert [p.text for p in passages if not p.after] == ["plumber at nine", "no, ten past", "twenty letters of it", "Why?", "no idea", "a" * 60, "right"]
    assert passages[2].around == sharp.ids("plumber at nine no, ten past") and not passages[1].around
    assert not any(p.after for p in sharp.passages(transcript[2:4], numbers[2:4]))
    assert [p.number for p in sharp.passages(transcript[:2] + transcript[4:], numbers[:2] + numbers[4:]) if p.after] == [4], "turn 2 was forgotten"
    assert not any(p.after for p in looked(64).passages(transcript, numbers))
    assert sharp.passages(transcript, numbers) == passages


def test_a_message_that_is_there_twice_is_read_once():
    """It is as near for what was said before it as that itself; of its two readings the better one counts."""
    reader = Reading(4, 0.5, -9.0, 9.0)
    sharp = looked(64, reader=reader, margin=-1e3)
    passages = sharp.passages(*conversation("zebra eats plums", "ok", "no, figs", "ok"))
    near = sharp.nearest("zebra eats what", passages)
    assert set(near) == {0, 1, 2} and abs(near[0] - near[2]) < 0.5 and near[1] < near[2] - 0.5
    kept, words, _ = sharp.read("zebra eats what", passages, near)
    assert set(kept) == {0, 2} and words == {0: "plums", 2: "figs"} and ("zebra eats plums", "no, figs") in reader.given[0]


def test_without_a_reader_what_is_near_is_read():
    plain = looked(64)
    passages = plain.passages(said("zebra eats plums"), [1])
    near = plain.nearest("zebra eats what", passages)
    assert near and plain.read("zebra eats what", passages, near) == (near, {}, frozenset()) and looked(64, reader=Reading(4, 1.0, 0.0, 1.0)).read("a", [], {}) == ({}, {}, frozenset())
