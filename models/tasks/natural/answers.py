"""Does an answer have the value? Exact words, but equal forms of numbers, times, amounts and dates count as one. Knows texts only; guesses nothing."""

import re
import unicodedata
from functools import lru_cache


def _w(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONES = _w(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _w("twenty thirty forty fifty sixty seventy eighty ninety")


def number_words(n: int) -> str:
    """An integer from 0 to 99 as words: `forty-two`."""
    if not 0 <= n <= 99:
        raise ValueError(f"{n} is not from 0 to 99")
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")


_WORDS = {number_words(n): n for n in range(100)}
_WORDS |= {word.replace("-", " "): n for word, n in _WORDS.items() if "-" in word}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b")
_HUNDRED = re.compile(r"\b(?:a|(\d{1,2})) hundred(?:(?: and)? (\d{1,2})\b)?")
_THOUSAND = re.compile(r"\b(?:a|(\d{1,3})) thousand(?:(?: and)? (\d{1,3})\b)?")
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11,
    "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15, "sixteenth": 16, "seventeenth": 17, "eighteenth": 18, "nineteenth": 19,
    "twentieth": 20, "thirtieth": 30,
}  # fmt: skip
_MONTHS = _w("january february march april may june july august september october november december")
_ORDINAL = re.compile(rf"\b(?:(20|30)[ -])?({'|'.join(_ORDINALS)})\b")
_UNITS = {
    "kilos": "kg", "kilo": "kg", "kilograms": "kg", "kilogram": "kg", "lb": "pounds", "lbs": "pounds", "centimetres": "cm", "centimeters": "cm",
    "centimetre": "cm", "grams": "g", "gram": "g", "millilitres": "ml", "milliliters": "ml", "metres": "m", "meters": "m", "mins": "minutes",
    "hrs": "hours", "grey": "gray", "percent": "%", "minute": "minutes", "hour": "hours", "day": "days", "week": "weeks", "month": "months",
    "year": "years", "mondays": "monday", "tuesdays": "tuesday", "wednesdays": "wednesday", "thursdays": "thursday", "fridays": "friday",
    "saturdays": "saturday", "sundays": "sunday",
}  # fmt: skip


@lru_cache(maxsize=1 << 16)
def normal(text: str) -> str:
    """A text in the form answers are compared in: lower case, digits for numbers, 24 times as h:mm, money as `NUMBER unit`, no marks."""
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'").replace("‘", "'").replace("–", "-").replace("—", " - ")
    text = re.sub(r"\*+|[\"“”`]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"([£$€])\s?(\d+(?:\.\d+)?)", lambda m: f"{m[2]} {_CURRENCY[m[1]]}", text)
    text = _NUMBER_WORD.sub(lambda m: str(_WORDS[m[0]]), text)
    text = _HUNDRED.sub(lambda m: str(int(m[1] or 1) * 100 + int(m[2] or 0)), text)
    text = _THOUSAND.sub(lambda m: str(int(m[1] or 1) * 1000 + int(m[2] or 0)), text)
    text = _ORDINAL.sub(lambda m: str(int(m[1] or 0) + _ORDINALS[m[2]]), text)
    text = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", r"\1", text)
    text = _dates(_times(text))
    text = re.sub(r"(?<=\d)\s?%", " %", text)
    text = re.sub(r"(?<=\d)(?=(?:kg|lbs?|cm|mm|ml|g|m|km)\b)", " ", text)
    text = re.sub(r"\b(?:quid|gbp)\b", "pounds", text)
    text = re.sub(r"\b(?:bucks|usd)\b", "dollars", text)
    text = re.sub(r"\d+(?= 1/2\b)", r"\g<0> and a half", text).replace("and a half 1/2", "and a half")
    words = re.findall(r"\d+(?:[.:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[%+/_#@-]", text)
    return " ".join(_UNITS.get(word, word) for word in words)


_CURRENCY = {"£": "pounds", "$": "dollars", "€": "euros"}


def _times(text: str) -> str:
    text = re.sub(r"\bhalf past (\d{1,2})\b", r"\1:30", text)
    text = re.sub(r"\bhalf (\d{1,2})\b(?! (?:hours|cups|pounds))", r"\1:30", text)
    text = re.sub(r"\b(?:a )?quarter (?:past|after) (\d{1,2})\b", r"\1:15", text)
    text = re.sub(r"\b(?:a )?quarter (?:to|of|before|till) (\d{1,2})\b", lambda m: f"{(int(m[1]) - 2) % 12 + 1}:45", text)
    text = re.sub(r"\b(\d{1,2})(?: minutes)? (?:past|after) (\d{1,2})\b", lambda m: f"{m[2]}:{int(m[1]):02d}", text)
    text = re.sub(
        r"\b(5|10|20|25)(?: minutes)? (?:to|before|till) (\d{1,2})\b", lambda m: f"{(int(m[2]) - 2) % 12 + 1}:{60 - int(m[1])}", text
    )
    text = re.sub(r"\b(\d{1,2}) o'clock\b", r"\1:00", text)
    text = re.sub(r"\b(\d{1,2})[.:](\d\d)\s?(a|p)\.?m\b\.?", r"\1:\2", text)
    text = re.sub(r"\b(\d{1,2})\s?(a|p)\.?m\b\.?", r"\1:00", text)
    text = re.sub(r"\b(1[3-9]|2[0-3]):([0-5]\d)\b", lambda m: f"{int(m[1]) - 12}:{m[2]}", text)
    return re.sub(r"\b0(\d):([0-5]\d)\b", r"\1:\2", text)


def _dates(text: str) -> str:
    for month in _MONTHS:
        if month in text:
            text = re.sub(rf"\b(?:the )?(\d{{1,2}})(?: of)? {month}\b", rf"{month} \1", text)
            text = re.sub(rf"\b{month} the (\d{{1,2}})\b", rf"{month} \1", text)
    return text


@lru_cache(maxsize=1 << 16)
def forms(value: str) -> frozenset[str]:
    """The value's forms that an answer may have, in normal form: a leading `the`, `a`, `my` or `our` may be left out, a time's dot is a colon."""
    plain = normal(value)
    found = {plain}
    found.add(re.sub(r"^(?:the|an?|my|our) (?=\S)", "", plain))
    clock = re.fullmatch(r"(\d{1,2})\.([0-5]\d)", plain)
    if clock:
        found.add(normal(f"{clock[1]}:{clock[2]}"))
    hour = re.fullmatch(r"(\d{1,2}):00", plain)
    if hour:
        found.add(hour[1])
    compact = re.sub(r"(?<=\w) ?- ?(?=\w)", " - ", plain)
    found.add(compact)
    return frozenset(form for form in found if form)


def mentions(text: str, value: str) -> bool:
    """Whether the value stands in the text as whole words, in one of its equal forms: `17` for `seventeen`, `9:30` for `half past nine`.

    `17:30` is `half past five` too, but what is said to be in the morning is not what is said to be in the afternoon.
    """
    said = normal(text)
    found = [form for form in forms(value) if _within(form, said)]
    if found and ":" in normal(value):
        mine, theirs = _half_of_day(value), _half_of_day(text)
        return not (mine and theirs and mine != theirs)
    return bool(found)


def _half_of_day(text: str) -> str:
    """`am` or `pm` where a text says one of them (13:00 to 23:59 and "in the evening" are pm), else nothing."""
    text = text.lower()
    halves = set()
    if re.search(r"\d\s?a\.?m\b|\bin the morning\b", text):
        halves.add("am")
    if re.search(r"\d\s?p\.?m\b|\bin the (?:afternoon|evening)\b|\bat night\b|\b(?:1[3-9]|2[0-3])[.:][0-5]\d\b", text):
        halves.add("pm")
    return halves.pop() if len(halves) == 1 else ""


def _within(form: str, said: str) -> bool:
    said = said if ":00" in form else said.replace(":00", "")
    return form in said and re.search(rf"(?<![\w.:]){re.escape(form)}(?![\w:]|\.\d)", said) is not None


def is_told(reply: str, value: str, accepted: tuple[str, ...] = (), others: tuple[str, ...] = ()) -> bool:
    """Whether a reply has the value, or one of the accepted other forms, and none of `others` (the value before a correction, say).

    Other values that hold the right one inside them (`green tin` for `tin`), or are held by it, are not counted against it.
    """
    right = [v for v in (value, *accepted) if mentions(reply, v)]
    wrong = [o for o in others if mentions(reply, o) and not any(mentions(o, v) or mentions(v, o) for v in (value, *accepted))]
    return bool(right) and not wrong
