"""How an answer says the words that were found: a made-up language in which what comes next is known."""

import numpy as np
import pytest

from lm2.runtime.session.saying import LONGEST, NOTHING, Text, first_tokens, yours

LETTERS = "abcdefghijklmnopqrstuvwxyz .!'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
END = len(LETTERS)


class Window:
    def __init__(self, text):
        self.text = text

    @property
    def length(self):
        return len(self.text)


class Language:
    """The next letter follows `says` as long as the window does, else whatever `after` (what stands there: what follows) has, else a blank."""

    def __init__(self, says, after=None):
        self.says, self.after, self.fed = says + "$", after or {}, 0

    def next(self, text):
        row = np.full(END + 1, -20.0, np.float32)
        if self.says.startswith(text) and text != self.says:
            letter = self.says[len(text)]
            row[END if letter == "$" else LETTERS.index(letter)] = 0.0
        for before, (letter, logit) in self.after.items():
            if text.endswith(before):
                row[END if letter == "$" else LETTERS.index(letter)] = logit
        return row

    def extend(self, tokens, window, all_logits=False):
        text, rows = window.text, []
        for token in np.asarray(tokens).ravel():
            self.fed += 1
            text += "$" if token == END else LETTERS[int(token)]
            rows.append(self.next(text))
        return (np.array([rows]) if all_logits else np.array(rows[-1:])), Window(text)

    def rewind(self, window, length):
        return Window(window.text[:length])


def encode(text):
    return [LETTERS.index(c) for c in text]


def decode(ids):
    return "".join("" if i == END else LETTERS[i] for i in ids)


TEXT = Text(encode, decode, (END,), lambda text, words: words.lower() in text.lower())


def begin(language, words, room=100):
    found = first_tokens(language, Window(""), language.next(""), [words] if isinstance(words, str) else words, TEXT, room)
    assert len(found.tokens) == len(found.logits)
    return decode(found.tokens), found


def test_the_models_own_answer_up_to_the_words():
    text, found = begin(Language("it is a boat."), "boat")
    assert text == "it is a boat" and [int(row.argmax()) for row in found.logits] == list(found.tokens)


def test_no_further_than_the_words():
    """What the model would say after them is not computed; of two that were found the second does not end it."""
    language = Language("it is a boat. so it is")
    assert begin(language, "boat")[0] == "it is a boat" and language.fed == len("it is a boat")
    language = Language("it is a boat. so it is")
    assert begin(language, ["so", "boat"])[0] == "it is a boat. so" and language.fed == len("it is a boat. so")
    language = Language("it is a boat. so it is")
    assert begin(language, ["plum", "boat"])[0] == "it is a boat" and language.fed == len("it is a boat. so it is")


def test_of_several_the_model_says_which():
    """The first that was found, where it says none."""
    assert begin(Language("it is a boat."), ["plum", "boat"])[0] == "it is a boat"
    assert begin(Language("it is a boat."), ["a", "boat"])[0] == "it is a"
    assert begin(Language("it is a boat."), ["plum", "zebra"])[0].lower().endswith("plum")


def test_words_that_end_later_are_had_to_their_end():
    """`boa` is in `boat`; the fewest tokens that still have it with one more."""
    assert begin(Language("a boat."), "a boat")[0] == "a boat"


def test_words_that_are_not_there_stand_where_the_model_likes_them():
    """After `you own` a blank is likely and then every letter of the words; elsewhere none is."""
    after = {"own a": (" ", 1.0), " a p": ("l", 3.0), "pl": ("u", 3.0), "plu": ("m", 3.0), "plum": (".", 3.0)}
    text, found = begin(Language("you own a boat.", after), "plum")
    assert text == "you own a plum" and list(found.logits[0]) == list(Language("you own a boat.").next(""))


def test_the_logits_are_those_that_each_token_stands_against():
    language = Language("you own a boat.")
    text, found = begin(language, "plum")
    assert text.lower().endswith("plum")
    assert all(np.array_equal(row, language.next(text[:n])) for n, row in enumerate(found.logits))


def test_an_end_that_is_likely_counts():
    """The same words at two places: behind one of them the answer may end."""
    after = {"x p": ("l", 3.0), "y p": ("l", 3.0), "pl": (".", -20.0), "y pl": (".", 5.0)}
    assert begin(Language("ax by cz.", after), "pl")[0] == "ax by pl"


def test_nothing_that_does_not_fit():
    assert begin(Language("a boat."), "plum", room=3)[1] == NOTHING
    assert begin(Language("a boat."), "plum", room=4)[0] == "Plum"


def test_words_without_tokens_are_not_said():
    nowhere = TEXT._replace(encode=lambda text: [LETTERS.index(c) for c in text if c in "ab"])
    language = Language("it is.")
    assert first_tokens(language, Window(""), language.next(""), ["plum"], nowhere, 100) == NOTHING


def test_an_answer_without_end_is_looked_at_no_further():
    language = Language("a" * 200)
    begin(language, "plum", room=500)
    assert language.fed < 12 * (LONGEST + 10)


def test_an_answer_that_would_be_empty_has_the_words():
    assert begin(Language(""), "plum")[0].lower().endswith("plum")


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("my desk", "your desk"), ("on My desk", "on your desk"), ("the army", "the army"), ("our house and me", "your house and you"),
        ("I'd rather", "I'd rather"), ("mine", "yours"),
    ],
)  # fmt: skip
def test_words_as_they_are_said_to_who_said_them(mine, theirs):
    assert yours(mine) == theirs


def test_words_in_either_form_are_had():
    assert begin(Language("on your desk."), "on my desk")[0] == "on your desk"
    assert begin(Language("on my desk."), "on my desk")[0] == "on my desk"
