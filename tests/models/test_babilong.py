"""BABILong's construction on a hand-made book and stories: order of facts, gaps, lengths, seeds, chunks."""

import hashlib
import itertools
import random
import textwrap

import pytest

from lm2.models.tasks import babi, babilong

WORDS = "the old tower stood above a quiet river and nobody in town knew why it had been built so high"


def words(text):
    return len(text.split())


@pytest.fixture(scope="module")
def books():
    made = []
    for b in range(2):
        text = "\n".join(
            f"Book {b} says {i} times that {WORDS}. Too short. Mr. Smith of house {b}{i} agreed that {WORDS}!" for i in range(40)
        )
        made.append(babilong.book(f"book{b}", text, words))
    return tuple(made)


@pytest.fixture(scope="module")
def stories():
    lines = []
    for i in range(6):
        lines += ["1 Mary moved to the garden.", "2 John got the milk.", "3 Where is Mary?\tgarden\t1", f"4 Mary went to room {i}."]
        lines += ["5 John went to the kitchen.", "6 Where is Mary?\toffice\t4"]
    return tuple(babi.parse(lines, "qa1"))


def take(stories, books, length, count, seed=0):
    return list(itertools.islice(babilong.samples(stories, books, length, seed, words), count))


def test_sentences_end_at_stops_not_at_titles(books):
    assert babilong.sentences('He left. "Why?" she asked. Mr. A. Smith said so! It was 3.5 then.\nA new paragraph') == [
        "He left.", '"Why?" she asked.', "Mr. A. Smith said so!", "It was 3.5 then.", "A new paragraph",
    ]  # fmt: skip
    for book in books:
        assert len(book.sentences) == 80 and all(n >= babilong.SENTENCE_TOKENS_MIN for n in book.tokens)
        assert not any("Too short" in s for s in book.sentences)


@pytest.mark.parametrize("length", [0, 500, 1000, 4000])
def test_facts_keep_their_order_and_the_length_is_reached(stories, books, length):
    told = [([f.text for f in story.facts_before(q)], q.answer) for story in stories for q in story.questions]
    for sample in take(stories, books, length, 30):
        facts = [sample.sentences[i] for i in sample.facts]
        assert (facts, sample.answer) in told
        assert list(sample.facts) == sorted(sample.facts) and set(sample.support) <= set(sample.facts)
        others = [s for i, s in enumerate(sample.sentences) if i not in sample.facts]
        room, total = length - babilong.PROMPT_TOKENS, sum(map(words, sample.sentences))
        assert sample.tokens == total
        if length == 0:
            assert not others
        else:
            assert room - 30 <= total <= room, "one more sentence of 25 words would not have fitted"
            assert all("Where is" not in s for s in sample.sentences)
        assert sample.labels == babi.labels("qa1")


def test_supporting_facts_are_marked(stories, books):
    for sample in take(stories, books, 1000, 20):
        text = sample.sentences[sample.support[-1]]
        assert text == "Mary moved to the garden." if sample.answer == "garden" else text.startswith("Mary went to room")


def test_book_sentences_are_consecutive(stories, books):
    order = [s for book in books for s in book.sentences]
    for sample in take(stories, books, 1000, 10):
        places = [order.index(s) for i, s in enumerate(sample.sentences) if i not in sample.facts]
        assert all(b - a == 1 or b in (0, 80) for a, b in itertools.pairwise(places)), "on to the next sentence or the next book's first"


def test_gaps_are_drawn_evenly(stories, books):
    """Mean place of a single fact in the middle; all tenths hit."""
    story = next(babi.parse(["1 Mary moved to the garden.", "2 Where is Mary?\tgarden\t1"], "qa1"))
    shares = []
    for sample in take((story,), books, 1500, 400):
        shares.append(sample.facts[0] / (len(sample.sentences) - 1))
    assert abs(sum(shares) / len(shares) - 0.5) < 0.06
    assert {min(9, int(s * 10)) for s in shares} == set(range(10))


def test_a_seed_decides_everything(stories, books):
    assert take(stories, books, 1000, 5) == take(stories, books, 1000, 5)
    assert take(stories, books, 1000, 5) != take(stories, books, 1000, 5, seed=1)
    assert take(stories, books, 1000, 8)[:5] == take(stories, books, 1000, 5), "a sample does not depend on how many are drawn"


def test_what_is_missing_is_said(stories, books):
    with pytest.raises(babilong.BabilongError, match="no book"):
        take(stories, (), 1000, 1)
    assert take(stories, (), 0, 1)[0].tokens > 0
    with pytest.raises(babilong.BabilongError, match="no question"):
        take((), books, 0, 1)
    for bad in ("", "k", "-1k", "1.5k", "1 k", "4kk"):
        with pytest.raises(babilong.BabilongError, match="must be a number of tokens"):
            babilong.parse_length(bad)
    assert [babilong.parse_length(t) for t in ("0k", "32k", "500", "1M")] == [0, 32000, 500, 1000000]


def test_chunks_hold_everything_once_and_fit(stories, books):
    for sample in take(stories, books, 2000, 10):
        made = babilong.conversation(sample, words, 60)
        texts = [chunk[0].content for chunk in made.chunks]
        assert " ".join(texts) == " ".join(sample.sentences)
        assert all(words(text) <= 60 for text in texts)
        decisive = sample.sentences[sample.support[-1]]
        assert decisive in texts[len(texts) - made.distance], "distance counts chunks from the deciding fact"
        assert (made.question, made.answer, made.kind) == (sample.question, sample.answer, "qa1")


def test_a_sentence_longer_than_a_chunk_is_cut_between_words():
    texts, where = babilong.pieces(["a b c d e", "f", "g h"], words, 3)
    assert (texts, where) == (["a b c", "d e f", "g h"], [0, 1, 2])


def utf8(text):
    """Tokens of a tokenizer with one a byte, which merges nothing."""
    return len(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "in an undertone, " + "-".join(["important", "unimportant"] * 9) + " as if he were trying which word sounded best",
        "https://example.org/" + "a/b?c=" * 90,
        "她说今天天气很好，我们去公园散步，看见很多花。" * 9,
        "\U0001f600" * 60 + " and \U0001f469\u200d\U0001f680" * 9,
        "x" * 999,
        "word " * 300 + "end",
    ],
)
@pytest.mark.parametrize("count", [utf8, babilong.estimate, len])
@pytest.mark.parametrize("room", [4, 20, 33])
def test_a_word_longer_than_a_chunk_is_cut(text, count, room):
    sentences = ["Before it.", text, "After it."]
    room = max(room, max(map(count, ("Before", "After"))))
    texts, where = babilong.pieces(sentences, count, room)
    assert all(count(t) <= room for t in texts)
    assert "".join(texts).replace(" ", "") == "".join(sentences).replace(" ", ""), "everything once, in order"
    for sentence, at in zip(sentences, where, strict=True):
        assert sentence[0] in texts[at]
    full = [t for t in texts[:-1] if count(t) < room - 12]
    assert len(full) <= 4 or count is not utf8, "chunks are filled"


def test_a_character_that_does_not_fit_is_refused():
    assert babilong.pieces(["long word"], len, 3) == (["lon", "g", "wor", "d"], [0])
    with pytest.raises(babilong.BabilongError, match="'花' has 3 tokens and there is room for 2"):
        babilong.pieces(["花"], utf8, 2)


def test_cutting_counts_no_more_than_it_must():
    """A book without a stop: tokens counted grow with its length, not with its square."""
    costs = []
    for size in (2000, 8000):
        counted = []
        babilong.pieces(["word " * size], lambda text: counted.append(len(text)) or words(text), 20)  # noqa: B023
        babilong.pieces(["w" * 5 * size], lambda text: counted.append(len(text)) or len(text), 100)  # noqa: B023
        costs.append(sum(counted))
    assert costs[1] < 5 * costs[0] + 100000, costs


def test_a_fact_longer_than_a_chunk_is_refused(stories, books):
    sample = take(stories, books, 1000, 1)[0]
    long = sample._replace(sentences=(*sample.sentences[: sample.facts[0]], "Mary " + "very " * 60 + "went.", *sample.sentences[sample.facts[0] + 1 :]))
    with pytest.raises(babilong.BabilongError, match=r"the fact 'Mary very .*\.\.\.' \(qa1\) has 62 tokens, a chunk has room for 60"):
        babilong.conversation(long, words, 60)


@pytest.mark.parametrize(
    "text",
    ["word " * 9000, "w" * 60000, "今天天气很好，我们去公园散步" * 3000, "https://a.b/" * 5000],
    ids=["no stop", "one word", "no blank", "addresses"],
)
def test_a_book_without_sentences_fills_the_length(stories, text):
    made = (babilong.book("b", text),)
    sample = next(babilong.samples(stories, made, 2000, 0))
    assert 2000 - babilong.PROMPT_TOKENS - 100 <= sample.tokens <= 2000 - babilong.PROMPT_TOKENS
    assert len(babilong.conversation(sample, utf8, 40).chunks) > 10


def test_wrapped_books_have_whole_sentences():
    made = [f"The keeper of lighthouse number {i} had never once left the island in all of its sixty long years." for i in range(60)]
    wrapped = "\r\n".join(textwrap.wrap(" ".join(made[:30]), 72)) + "\r\n\r\n" + "\r\n".join(textwrap.wrap(" ".join(made[30:]), 72))
    assert babilong.book("b", wrapped.replace("\r\n", "\n")).sentences == tuple(made)


def test_books_in_folders_and_of_every_ending(tmp_path):
    for name in ("b.TXT", "deep/er/c.txt", "d.md", "deep/b.txt", "README.md", "._b.txt"):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{WORDS}.")
    assert list(babilong.named_books(*babilong.book_home(tmp_path))) == ["b", "d", "deep/b", "deep/er/c"]
    (tmp_path / "books" / "b.txt").write_text(f"{WORDS}.")
    with pytest.raises(babilong.BabilongError, match="one name, b: rename"):
        babilong.named_books(*babilong.book_home(tmp_path))
    path = tmp_path / "books" / "d.md"
    for data, said in ((b"\xff", "not UTF-8"), (b"a\0", "NUL"), (b"", "no sentence")):
        path.write_bytes(data)
        with pytest.raises(babilong.BabilongError, match=said):
            babilong.book("d.md", babilong.read_text(path))


def test_streams_of_ordinary_books_are_what_they_always_were(stories):
    """Published figures were measured on these samples and chunks: a digest of what the first version made of them."""
    rng = random.Random(5)
    text = "\n".join(
        " ".join(" ".join(rng.choice(WORDS.split()) for _ in range(rng.randint(6, 90))).capitalize() + rng.choice(".!?") for _ in range(9))
        for _ in range(120)
    )
    made = tuple(babilong.book(f"b{i}", text[i * 20000 :]) for i in range(2))
    digest = hashlib.sha256()
    for length in (0, 500, 1000, 4000):
        for sample in itertools.islice(babilong.samples(stories, made, length, 0), 20):
            for room in (20, 60, 400):
                digest.update(repr(babilong.conversation(sample, babilong.estimate, room)).encode())
    assert digest.hexdigest() == "ccc226bdbceefe53322d5f82f558c41db30128831ffb50af54e5f5ab6e1f7ab3"


def test_books_are_held_out_by_name(tmp_path):
    names = [f"book{i}" for i in range(200)]
    train, held = babilong.book_part(names, "train"), babilong.book_part(names, "validation")
    assert sorted(train + held) == sorted(names) and 20 < len(held) < 60
    assert set(babilong.book_part(names[:100], "validation")) <= set(held), "other books do not move a book"
    assert len(babilong.book_part(["a", "b"], "validation")) == 1
    (tmp_path / "qa1_x_train.txt").write_text("1 A.\n")
    with pytest.raises(babilong.BabilongError, match="no book"):
        babilong.named_books(tmp_path, False)
    with pytest.raises(babilong.BabilongError, match="no sentence"):
        babilong.book("b", "Short.")


def test_the_estimate_counts_words_marks_and_long_words():
    assert babilong.estimate("") == 0
    assert babilong.estimate("Mary moved to the garden.") == 6
    assert babilong.estimate("extraordinarily") == 2
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS.split()) for _ in range(100))
    assert babilong.estimate(text) == 100
