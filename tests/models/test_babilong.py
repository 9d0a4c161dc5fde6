"""BABILong's construction on a hand-made book and stories: order of facts, gaps, lengths, seeds, chunks."""

import itertools
import random

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
    with pytest.raises(babilong.BabilongError, match="'long'"):
        babilong.pieces(["long word"], len, 3)


def test_books_are_held_out_by_name(tmp_path):
    names = [f"book{i}" for i in range(200)]
    train, held = babilong.book_part(names, "train"), babilong.book_part(names, "validation")
    assert sorted(train + held) == sorted(names) and 20 < len(held) < 60
    assert set(babilong.book_part(names[:100], "validation")) <= set(held), "other books do not move a book"
    assert len(babilong.book_part(["a", "b"], "validation")) == 1
    (tmp_path / "qa1_x_train.txt").write_text("1 A.\n")
    with pytest.raises(babilong.BabilongError, match="no book"):
        babilong.read_books(tmp_path)
    (tmp_path / "b.txt").write_text("Short.")
    with pytest.raises(babilong.BabilongError, match="no sentence"):
        babilong.read_books(tmp_path)


def test_the_estimate_counts_words_marks_and_long_words():
    assert babilong.estimate("") == 0
    assert babilong.estimate("Mary moved to the garden.") == 6
    assert babilong.estimate("extraordinarily") == 2
    rng = random.Random(0)
    text = " ".join(rng.choice(WORDS.split()) for _ in range(100))
    assert babilong.estimate(text) == 100
