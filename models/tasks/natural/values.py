"""Values that people tell: names, times, amounts, things. A type's name and a seeded random.Random in, a text out. Knows no sentences.

Which split a word belongs to follows from the word alone (a CRC of it in the form answers are compared in, so that `17` goes with `seventeen`), whatever its type: what is drawn for training is never
drawn for what is held out. `weekday` and `month` have too few values to divide. Lists are in data/values.txt, `type: word, word`.
"""

import random
import re
import zlib
from collections.abc import Callable
from functools import cache

from .answers import normal, number_words
from .errors import CorpusError
from .files import data_file

SPLITS = ("train", "heldout")
CLOSED = ("weekday", "month")
HELD_OF = 5  # every so many-th word is held out
TRIES = 1000


def _w(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ORDINALS = _w(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth "
    "eighteenth nineteenth twentieth"
)
_STARTS = _w("b br c cl d dr f fl g gr h j k kr l m n p pr qu r s sh sk st t th tr v w y z")
_VOWELS = _w("a e i o u a e i o ai ea oo ou")
_ENDS = _w("l n r s t m x ck nd rn lt ss th sh v d")
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
_RANGED = re.compile(r"(n|money|cents|plus)(\d+)-(\d+)")


def held_out(text: str) -> bool:
    """Whether a word or a whole value is one of the held-out fifth."""
    return zlib.crc32(f"natural {normal(text)}".encode()) % HELD_OF == 0


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """data/values.txt. Raises CorpusError for a line that is none, and for a word that stands twice in its list."""
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(data_file("values.txt").read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, rest = line.partition(":")
        words = tuple(word.strip() for word in rest.split(","))
        if not colon or not all(words) or not re.fullmatch(r"[a-z]+", name):
            raise CorpusError(f"values.txt line {number}: {line[:40]!r} is no `type: word, word`")
        words = (*found.get(name, ()), *words)
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            raise CorpusError(f"values.txt line {number}: {twice[0]!r} stands twice in {name}")
        found[name] = words
    return found


@cache
def pool(name: str, split: str) -> tuple[str, ...]:
    """The words of a list that belong to a split; of CLOSED lists, and of parts of values, all. Raises CorpusError for no such list or split."""
    if split not in SPLITS:
        raise CorpusError(f"split {split!r} must be one of {SPLITS}")
    if name not in lists():
        raise CorpusError(f"there is no list of values {name!r}: values.txt has {', '.join(lists())}")
    if name in CLOSED:
        return lists()[name]
    return tuple(word for word in lists()[name] if held_out(word) == (split == "heldout"))


def known(name: str) -> bool:
    """Whether there is a type of this name."""
    return name in _MAKERS or name in lists() or bool(_RANGED.fullmatch(name))


def draw(name: str, rng: random.Random, split: str) -> str:
    """A value of a type and split.

    Types: those of values.txt, those below, and ranges: `n2-60` a number in digits or words, `money5-90` whole amounts, `cents1-20` prices,
    `plus2-9` a number in digits. Raises CorpusError for another one.
    """
    if split not in SPLITS:
        raise CorpusError(f"split {split!r} must be one of {SPLITS}")
    ranged = _RANGED.fullmatch(name)
    if ranged:
        form, low, high = ranged[1], int(ranged[2]), int(ranged[3])
        return _kept(lambda: _ranged(form, low, high, rng), split, high - low >= 20)
    if name in _MAKERS:
        return _MAKERS[name](rng, split)
    if name not in lists():
        raise CorpusError(f"there is no type of value {name!r}")
    return rng.choice(pool(name, split))


def _kept(make: Callable[[], str], split: str, divided: bool = True) -> str:
    """What `make` gives that belongs to the split; where values are too few to be divided, what it gives first."""
    for _ in range(TRIES):
        value = make()
        if not divided or held_out(value) == (split == "heldout"):
            return value
    raise CorpusError(f"no value of the split {split} in {TRIES} draws: {make()!r} is one of too few")


def _ranged(form: str, low: int, high: int, rng: random.Random) -> str:
    n = rng.randint(low, high)
    if form == "n":
        return number_words(n) if n <= 99 and rng.random() < 0.5 else f"{n:,}" if n > 9999 else str(n)
    if form == "plus":
        return str(n)
    if form == "cents":
        text = f"{n}.{rng.choice('0123456789')}{rng.choice('059')}"
        return rng.choice((f"£{text}", f"${text}", f"€{text}", f"{text} euros"))
    if n > 200:
        n -= n % 5
    said = f"{n:,}" if n > 9999 or (n > 999 and rng.random() < 0.5) else str(n)
    return rng.choice((f"${said}", f"£{said}", f"€{said}", f"{said} dollars", f"{said} pounds", f"{said} euros", f"{said} quid"))


def _syllables(rng: random.Random, least: int, most: int) -> str:
    word = ""
    for _ in range(rng.randint(least, most)):
        word += rng.choice(_STARTS) + rng.choice(_VOWELS)
    return word + (rng.choice(_ENDS) if rng.random() < 0.6 else "")


def _invented(rng: random.Random, split: str, ends: tuple[str, ...] = ("",), least: int = 1, most: int = 2) -> str:
    return _kept(lambda: (_syllables(rng, least, most) + rng.choice(ends)).capitalize(), split)


def _name(rng: random.Random, split: str) -> str:
    if rng.random() < 0.15:
        return _invented(rng, split, ("", "a", "o", "in", "el", "is"))
    return rng.choice(pool("first", split))


def _surname(rng: random.Random, split: str) -> str:
    if rng.random() < 0.25:
        return _invented(rng, split, ("son", "ley", "berg", "ova", "mann", "wick", "er", "ini", "ez"))
    return rng.choice(pool("last", split))


def _town(rng: random.Random, split: str) -> str:
    if rng.random() < 0.4:
        return _invented(rng, split, ("ford", "by", "ton", "dale", "mouth", "stad", "ham", "wick", " Bay", "ville"), 1, 1)
    return rng.choice(pool("place", split))


def _street(rng: random.Random, split: str) -> str:
    first = rng.choice(pool("way", split)) if rng.random() < 0.6 else rng.choice((_surname, _invented))(rng, split)
    return f"{first} {rng.choice(lists()['road'])}"


def _time(rng: random.Random, split: str) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55))
    word, after = number_words(hour), number_words(hour % 12 + 1)
    spoken = {0: f"{word} o'clock", 15: f"quarter past {word}", 30: f"half past {word}", 45: f"quarter to {after}", 10: f"ten past {word}",
              20: f"twenty past {word}", 40: f"twenty to {after}", 50: f"ten to {after}", 5: f"five past {word}", 55: f"five to {after}"}  # fmt: skip
    roll = rng.random()
    if roll < 0.4 and minute in spoken:
        return spoken[minute]
    if roll < 0.65:
        return f"{hour}:{minute:02d}" + rng.choice(("", "", " am", " pm"))
    if roll < 0.75:
        return f"{hour} {rng.choice(('am', 'pm'))}"
    if roll < 0.85:
        return f"{hour}.{minute:02d}"
    return f"{rng.randint(13, 22)}:{minute:02d}"


def _when(rng: random.Random, split: str) -> str:
    """A day with its hour: `Thursday at ten`."""
    hour, minute = rng.randint(1, 12), rng.choice((0, 0, 15, 30, 45))
    word, after = number_words(hour), number_words(hour % 12 + 1)
    spoken = {0: word, 15: f"quarter past {word}", 30: rng.choice((f"half past {word}", f"half {word}")), 45: f"quarter to {after}"}[minute]
    time = spoken if rng.random() < 0.7 else f"{hour}{rng.choice(':.')}{minute:02d}"
    day = rng.choice(lists()["weekday"]) if rng.random() < 0.8 else f"the {_short(rng.randint(1, 28))}"
    part = rng.choice((" morning", " afternoon", "", "", "")) if day[0].isupper() else ""
    return rng.choice((f"{day}{part} at {time}", f"{day}{part} at {time}", f"{day}{part}, {time}"))


def _date(rng: random.Random, split: str) -> str:
    day, month = rng.randint(1, 28), rng.choice(lists()["month"])
    short = _short(day)
    word = _ORDINALS[day - 1] if day <= 20 else f"twenty-{_ORDINALS[day - 21]}"
    return rng.choice((f"{month} {day}", f"{day} {month}", f"the {short} of {month}", f"{month} {short}", f"the {word} of {month}"))


def _short(day: int) -> str:
    return f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _duration(rng: random.Random, split: str) -> str:
    n = rng.randint(2, 20)
    unit = rng.choice(("minutes", "hours", "days", "weeks", "months", "years"))
    if unit == "minutes":
        n *= 5
    if rng.random() < 0.15:
        return f"{number_words(min(n, 12))} and a half {unit}"
    return f"{number_words(n) if rng.random() < 0.6 and n < 100 else n} {unit}"


def _span(rng: random.Random, split: str) -> str:
    unit = rng.choice(("days", "weeks", "months"))
    n = rng.randint(2, 30 if unit == "days" else 14)
    if rng.random() < 0.15:
        return f"{number_words(min(n, 11))} and a half {unit}"
    return f"{number_words(n) if rng.random() < 0.6 else n} {unit}"


def _code(rng: random.Random, split: str) -> str:
    return "".join(rng.choices("0123456789", k=rng.choice((4, 4, 5, 6))))


def _ref(rng: random.Random, split: str) -> str:
    letters = "".join(rng.choices(_LETTERS, k=rng.randint(1, 3)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}", f"{digits}{letters}"))


def _phone(rng: random.Random, split: str) -> str:
    return rng.choice((f"555-01{rng.randint(0, 99):02d}", f"07700 900{rng.randint(0, 999):03d}", f"020 7946 0{rng.randint(0, 999):03d}"))


def _plate(rng: random.Random, split: str) -> str:
    letters = "".join(rng.choices(_LETTERS, k=5))
    return rng.choice((f"{letters[:2]}{rng.randint(10, 99)} {letters[2:]}", f"{letters[:3]}-{rng.randint(100, 9999)}"))


def _password(rng: random.Random, split: str) -> str:
    word = _syllables(rng, 2, 3) if rng.random() < 0.5 else rng.choice(pool("animal", split)).replace(" ", "")
    return rng.choice(
        (f"{word}{rng.randint(2, 99)}", f"{word}-{_syllables(rng, 1, 2)}", f"{word}_{rng.randint(100, 999)}", word.capitalize())
    )


def _version(rng: random.Random, split: str) -> str:
    return f"{rng.randint(0, 12)}.{rng.randint(0, 20)}" + (f".{rng.randint(0, 30)}" if rng.random() < 0.5 else "")


def _room(rng: random.Random, split: str) -> str:
    return rng.choice(
        (f"{rng.choice(_LETTERS)}{rng.randint(1, 40)}", str(rng.randint(101, 899)), f"{rng.randint(1, 9)}.{rng.randint(10, 40)}")
    )


def _title(rng: random.Random, split: str) -> str:
    noun, other = rng.choice(pool("titlenoun", split)), rng.choice(lists()["titlenoun"])
    first = rng.choice(lists()["titleword"])
    return rng.choice(
        (f"The {first} {noun}", f"{first} {noun}", f"The {noun} of {other}", f"The {noun}", f"{noun} and {other}", f"A {first} {noun}")
    )


def _venue(rng: random.Random, split: str) -> str:
    noun = rng.choice(pool("titlenoun", split))
    return rng.choice((f"The {rng.choice(lists()['titleword'])} {noun}", f"{_name(rng, split)}'s", f"the {noun}", _invented(rng, split)))


def _model(rng: random.Random, split: str) -> str:
    return f"{_invented(rng, split)} {rng.choice((str(rng.randint(2, 90)), str(rng.randint(1, 9) * 100), 'GT', 'Plus', 'Mini', 'XR'))}"


def _medicine(rng: random.Random, split: str) -> str:
    return _invented(rng, split, ("amide", "oxin", "azole", "ipril", "statin", "idol", "ufen", "mycin", "prazan"), 1, 2).lower()


def _product(rng: random.Random, split: str) -> str:
    return _invented(rng, split, ("", "ly", "ify", "base", "desk", "io", "kit", "flow"))


def _object(rng: random.Random, split: str) -> str:
    noun = rng.choice(pool("thing", split))
    return f"{rng.choice(lists()['adjective'])} {noun}" if rng.random() < 0.3 else noun


def _spot(rng: random.Random, split: str) -> str:
    noun = rng.choice(pool("container", split))
    adjective = f"{rng.choice(lists()['adjective'])} " if rng.random() < 0.25 else ""
    return f"{rng.choice(('in', 'under', 'behind', 'on top of', 'next to', 'inside', 'beside', 'at the back of'))} the {adjective}{noun}"


def _shade(rng: random.Random, split: str) -> str:
    colour = rng.choice(pool("colour", split))
    return f"{rng.choice(('dark', 'pale', 'light', 'bright', 'deep', 'dusty'))} {colour}" if rng.random() < 0.3 else colour


def _todo(rng: random.Random, split: str) -> str:
    if rng.random() < 0.5:
        return rng.choice(pool("errand", split))
    return f"{rng.choice(('fix', 'clean', 'sell', 'return', 'pick up', 'collect', 'wrap', 'paint', 'order', 'mend', 'sort out'))} the {rng.choice(pool('thing', split))}"


def _length(rng: random.Random, split: str) -> str:
    unit = rng.choice(("centimetres", "inches", "feet", "metres", "cm"))
    n = rng.randint(2, 12) if unit in ("feet", "metres") else rng.randint(12, 95)
    return f"{n}.{rng.randint(1, 9)} {unit}" if rng.random() < 0.25 else f"{number_words(n) if rng.random() < 0.3 else n} {unit}"


def _tall(rng: random.Random, split: str) -> str:
    n = rng.randint(3, 14)
    return f"{number_words(n) if rng.random() < 0.4 else n}{rng.choice(('', '', ' and a half'))} {rng.choice(('feet', 'metres'))}"


def _height(rng: random.Random, split: str) -> str:
    n = rng.randint(15, 160)
    return f"{number_words(n) if n <= 99 and rng.random() < 0.3 else n} {rng.choice(('feet', 'metres', 'yards'))}"


def _triptime(rng: random.Random, split: str) -> str:
    if rng.random() < 0.6:
        n = rng.randint(12, 95)
        return f"{number_words(n) if rng.random() < 0.5 else n} minutes"
    n = rng.randint(2, 15)
    return f"{number_words(n) if rng.random() < 0.6 else n}{rng.choice(('', ' and a half'))} hours"


def _weight(rng: random.Random, split: str) -> str:
    n = rng.randint(2, 40)
    unit = rng.choice(("kilos", "kg", "pounds", "lbs"))
    return f"{n}.{rng.randint(1, 9)} {unit}" if rng.random() < 0.3 else f"{number_words(n) if rng.random() < 0.3 else n} {unit}"


def _amount(rng: random.Random, split: str) -> str:
    n = rng.randint(2, 12)
    spoken = f"{number_words(n)} {rng.choice(('tablespoons', 'teaspoons', 'cups', 'pinches', 'handfuls'))}"
    return rng.choice((f"{rng.randint(2, 90) * 10} {rng.choice(('grams', 'g', 'ml'))}", spoken))


def _score(rng: random.Random, split: str) -> str:
    return f"{rng.randint(0, 9)}-{rng.randint(0, 9)}"


def _club(rng: random.Random, split: str) -> str:
    return (
        f"{_town(rng, split)} {rng.choice(('Rovers', 'United', 'Athletic', 'Falcons', 'Town', 'Rangers', 'Wanderers', 'Otters', 'Comets'))}"
    )


def _file(rng: random.Random, split: str) -> str:
    word = _syllables(rng, 1, 2) if rng.random() < 0.4 else rng.choice(pool("thing", split)).replace(" ", "_")
    return f"{word}{rng.choice(('', '_final', '_v2', '_new', str(rng.randint(1, 99))))}.{rng.choice(('txt', 'xlsx', 'pdf', 'py', 'csv', 'md', 'docx', 'json'))}"


def _source(rng: random.Random, split: str) -> str:
    word = _syllables(rng, 1, 2) if rng.random() < 0.4 else rng.choice(pool("thing", split)).replace(" ", "_").replace("'", "")
    return f"{word}{rng.choice(('', '_test', '_utils', '2', '_old'))}.{rng.choice(('py', 'rs', 'js', 'go', 'c', 'java', 'rb', 'cpp'))}"


def _host(rng: random.Random, split: str) -> str:
    return f"{_syllables(rng, 1, 2)}{rng.choice(('', '-' + str(rng.randint(1, 20)), str(rng.randint(1, 9))))}"


Maker = Callable[[random.Random, str], str]


def _own(make: Maker) -> Maker:
    """A maker of values that are divided as wholes: by the value's CRC."""
    return lambda rng, split: _kept(lambda: make(rng, split), split)


_MAKERS: dict[str, Maker] = {
    "person": _name, "surname": _surname, "fullname": lambda rng, split: f"{_name(rng, split)} {_surname(rng, split)}",
    "invented": _invented, "petname": lambda rng, split: rng.choice(pool("pet", split)) if rng.random() < 0.6 else _name(rng, split),
    "town": _town, "street": _street, "address": lambda rng, split: f"{rng.randint(1, 240)} {_street(rng, split)}",
    "time": _own(_time), "when": _own(_when), "date": _own(_date), "duration": _own(_duration), "span": _own(_span), "tall": _own(_tall), "height": _own(_height), "triptime": _own(_triptime), "code": _own(_code), "ref": _own(_ref), "phone": _own(_phone),
    "plate": _own(_plate), "password": _own(_password), "version": _own(_version), "room": _own(_room), "title": _own(_title), "venue": _own(_venue),
    "model": _model, "medicine": _medicine, "product": _product, "object": _object, "spot": _spot, "shade": _shade, "todo": _todo,
    "length": _own(_length), "weight": _own(_weight), "amount": _own(_amount), "score": _own(_score), "club": _club, "file": _own(_file),
    "host": _own(_host), "source": _own(_source),
}  # fmt: skip
