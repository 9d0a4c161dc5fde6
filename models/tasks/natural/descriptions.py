"""A question made of a slot's description: "City where the apartment is located" becomes "In which city is the apartment located?".

Rules of grammar for the descriptions that schemas of dialogues have. Knows no slots and no values.
"""

import re

_BARE = {
    "the", "a", "an", "which", "whom", "each", "money", "food", "rain", "snow", "music", "scheduling", "checking", "people", "fahrenheit", "celsius",
    "this", "that", "to", "origin", "my", "their", "its", "percentage", "humidity",
}  # fmt: skip
_PREPOSITION = r"(of|for|in|by|at|on|with)"
_VERBS = {
    "has": "have",
    "serves": "serve",
    "offers": "offer",
    "allows": "allow",
    "belongs": "belong",
    "provides": "provide",
    "accepts": "accept",
}
_YES_NO = re.compile(r"(?:Boolean (?:flag|value) )?(?:indicating |indicates )?(?:if|whether) (.+?)(?: or not)?", re.IGNORECASE)
_BEGINS = re.compile(r"(\w+) (on|in|at|from|to) which (.+?) (\w+[^su])s(?: (.+))?")
_PLACE = re.compile(r"(\w+(?: or \w+)?) where (.+?) (is|are|was|were) (.+)")
_WHEN = re.compile(r"(?:Time|Date|Day|time|date|day) when (.+?) (is|are|was|were) (.+)")
_WHICH = re.compile(r"(\w+(?: \w+)?) (on|in|at|from|to) which (.+?) (is|are|was|were|belongs) ?(.*)")
_WHO = re.compile(r"(\w+) (?:who|that|which) (?!is to\b)(\w+ .+)")
_BELONGS = re.compile(r"(\w+) (the \w+|\w+) (belongs|refers) to")
_MANY = re.compile(r"(?:Total )?[Nn]umber of (?:the )?(.+)")
_TYPE = re.compile(r"(Type|Kind|Sort) of (.+)")


def question_from_description(description: str) -> str:
    """A question for what a description describes. Raises ValueError for an empty one."""
    text = " ".join(description.strip().rstrip(".").split())
    if not text:
        raise ValueError("an empty description gives no question")
    text = re.sub(r",? either .*$| or (?:to|for) .*$", "", text).replace("/", " or ")
    text = re.sub(r"^[Tt]he ", "", _articles(text))
    for rule in (_yes_no, _which_place, _when, _which, _belongs, _who, _how_many, _what_type):
        question = rule(text)
        if question:
            return question
    text = re.sub(r"^an? ", "", text, flags=re.IGNORECASE)
    are = "are" if re.match(r"\w+s (?:of|for|in|to)\b", text) and not re.match(r"\w+ss\b", text) else "is"
    return f"What {are} the {_small(text)}?"


def _small(text: str) -> str:
    """The text with a small first letter, unless it is an abbreviation or "I"."""
    return text if len(text) < 2 or text[1].isupper() or text.startswith("I ") else text[0].lower() + text[1:]


def _articles(text: str) -> str:
    """`the` before a bare noun in the singular after a preposition."""

    def put(found: re.Match[str]) -> str:
        word = found[2]
        plural = re.search(r"s$", word) and not re.search(r"(?:ss|us)$", word)
        following = text[found.end() :].split()
        head = following[0] if following else ""
        plural = plural or (re.search(r"s$", head) and not re.search(r"(?:ss|us)$", head) and head not in ("is", "was", "has", "belongs"))
        if word.lower() in _BARE or plural or not word[0].islower() or re.search(r"ing$", word):
            return found[0]
        return f"{found[1]} the {word}"

    return re.sub(rf"\b{_PREPOSITION} (\w+)", put, text)


def _the(noun: str) -> str:
    first = noun.split()[0]
    plural = re.search(r"[^su]s$", noun)
    return noun if first.lower() in _BARE or plural or re.search(r"ing$", noun) else f"the {noun}"


def _yes_no(text: str) -> str | None:
    found = _YES_NO.fullmatch(text)
    if not found:
        return None
    clause = re.fullmatch(rf"(.+?) (is|are|was|were|can|{'|'.join(_VERBS)}) (.+)", found[1])
    if not clause:
        return f"Is it true that {found[1]}?"
    subject, verb, rest = clause[1], clause[2], clause[3]
    rest = re.sub(r"\bgood for to take kids to\b", "good to take kids to", rest)
    rest = re.sub(r"^a red-eye flight$", "a red-eye flight", rest)
    if verb in _VERBS:
        return f"Does {_the(subject)} {_VERBS[verb]} {rest}?"
    return f"{verb.capitalize()} {_the(subject)} {rest}?"


def _which_place(text: str) -> str | None:
    found = _PLACE.fullmatch(text)
    if not found:
        return None
    noun, subject, verb, rest = _small(found[1]), _the(found[2]), found[3], found[4]
    if re.search(r"\b(?:from|to)$", rest):
        return f"Which {noun} {verb} {subject} {rest}?"
    return f"In which {noun} {verb} {subject} {rest}?"


def _when(text: str) -> str | None:
    found = _WHEN.fullmatch(text)
    return f"When {found[2]} {_the(found[1])} {found[3]}?" if found else None


def _which(text: str) -> str | None:
    found = _WHICH.fullmatch(text)
    if not found:
        begins = _BEGINS.fullmatch(text)
        if not begins:
            return None
        rest = f" {begins[5]}" if begins[5] else ""
        return f"{begins[2].capitalize()} which {_small(begins[1])} does {_the(begins[3])} {begins[4]}{rest}?"
    if found[3].startswith("to "):
        return None
    if found[4] == "belongs":
        return f"{found[2].capitalize()} which {_small(found[1])} does {_the(found[3])} belong{' ' + found[5] if found[5] else ''}?"
    return f"{found[2].capitalize()} which {_small(found[1])} {found[4]} {_the(found[3])} {found[5]}?"


def _belongs(text: str) -> str | None:
    found = _BELONGS.fullmatch(text)
    return f"Which {_small(found[1])} does {_the(found[2])} {found[3][:-1]} to?" if found else None


def _who(text: str) -> str | None:
    found = _WHO.fullmatch(text)
    return f"Which {_small(found[1])} {found[2]}?" if found else None


def _how_many(text: str) -> str | None:
    found = _MANY.fullmatch(text)
    if not found:
        return None
    parts = re.fullmatch(rf"(.+?) ((?:{_PREPOSITION[1:-1]}|to|made|needed|required)\b.*)", found[1])
    if not parts:
        return f"How many {found[1]} are there?"
    if re.match(r"to be |made|needed|required", parts[2]):
        return f"How many {parts[1]} are {parts[2]}?"
    return f"How many {parts[1]} are there {parts[2]}?"


def _what_type(text: str) -> str | None:
    found = _TYPE.fullmatch(text)
    if not found:
        return None
    what, preposition, rest = re.sub(r"^(?:the|an?) ", "", found[2]).partition(" for ")
    return f"What {found[1].lower()} of {what} is it{preposition}{rest}?"
