"""Kinds of fact as they are written down, and the checks on them. Knows the form of the files; draws nothing.

[hens] x: n3-60                     a kind, its slots and the types of their values (values.py, or `(this | that)`)
I keep {x} hens, believe it or not  a statement; {X} begins with a capital, {a x} has its article, {old} is the value before a correction
~ make that {x} hens by the way     a correction, a message of its own, said after a statement with another value
? How many hens do I keep?          a question for {x}; `?y ` for {y}. What it names ({name}) says which fact of the kind is meant
= You keep {x} hens.                the answer to it as a sentence; `=y ` for {y}
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import values
from .errors import CorpusError
from .files import lines

STATEMENTS_MIN = 4
QUESTIONS_MIN = 3
SECOND_MIN = 2  # statements that tell a slot which is not a kind's first

_HEAD = re.compile(r"\[([a-z0-9' ]+)\] *(.*)")
_SLOT = re.compile(r"([a-z]+): *(\([^()]+\)|[a-z0-9-]+)(?: *; *|$)")
_MARK = re.compile(r"\{([^{}]*)\}")
_FORM = re.compile(r"(?:[aA] )?([a-z]+|[A-Z][a-z]*)")
_ASKED = re.compile(r"([?=])([a-z]*) +(\S.*)")


@dataclass(frozen=True)
class Kind:
    """A kind of fact.

    slots: the type of each slot's values; where it has alternatives of its own, those. asked: slots that are asked for, the first one first.
    keys: of an asked slot, the slots its questions name. corrections: of the first asked slot.
    """

    name: str
    slots: Mapping[str, str | tuple[str, ...]]
    statements: tuple[str, ...]
    corrections: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]
    replies: Mapping[str, str]
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(self.questions)


def slots_of(template: str) -> list[str]:
    """Names of the slots in a template, in order, without article and capital. Raises ValueError for one that is none."""
    found = []
    for mark in _MARK.findall(template):
        form = _FORM.fullmatch(mark)
        if not form:
            raise ValueError(f"{{{mark}}} is no slot")
        found.append(form[1].lower())
    if re.search(r"[{}]", _MARK.sub("", template)):
        raise ValueError("a brace stands alone")
    return found


@dataclass
class _Draft:
    where: str
    name: str
    slots: dict[str, str | tuple[str, ...]]
    statements: list[str] = field(default_factory=list)
    corrections: list[str] = field(default_factory=list)
    questions: dict[str, list[str]] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)


def read(paths: Iterable[Path]) -> dict[str, Kind]:
    """The kinds of some files, by name. Raises CorpusError naming file, line and kind for whatever breaks the form."""
    kinds: dict[str, Kind] = {}
    said: dict[str, str] = {}
    for path in paths:
        for draft in _drafts(path):
            kind = _checked(draft)
            if kind.name in kinds:
                raise CorpusError(f"{draft.where}: kind {kind.name!r} is there already: give it another name")
            for text in kind.statements:
                if text.lower() in said:
                    raise CorpusError(f"{draft.where}: {text!r} is said by {said[text.lower()]!r} already")
                said[text.lower()] = kind.name
            kinds[kind.name] = kind
    return kinds


def _drafts(path: Path) -> list[_Draft]:
    drafts: list[_Draft] = []
    for number, line in lines(path):
        where = f"{path.name} line {number}"
        head = _HEAD.fullmatch(line)
        if head:
            drafts.append(_Draft(f"{where}, [{head[1]}]", head[1], _slots(head[2], where)))
            continue
        if not drafts:
            raise CorpusError(f"{where}: {line[:40]!r} stands before the first [kind]")
        draft, asked = drafts[-1], _ASKED.fullmatch(line)
        if line.startswith("~ "):
            draft.corrections.append(line[2:].strip())
        elif asked and asked[1] == "?":
            draft.questions.setdefault(asked[2] or "x", []).append(asked[3])
        elif asked:
            if (asked[2] or "x") in draft.replies:
                raise CorpusError(f"{where}: a second answer for {{{asked[2] or 'x'}}} of [{draft.name}]")
            draft.replies[asked[2] or "x"] = asked[3]
        elif line[0] in "?=~[":
            raise CorpusError(f"{where}: {line[:40]!r} is no kind, question, answer or correction: a blank may be missing")
        else:
            draft.statements.append(line)
    return drafts


def _slots(text: str, where: str) -> dict[str, str | tuple[str, ...]]:
    slots: dict[str, str | tuple[str, ...]] = {}
    at = 0
    for found in _SLOT.finditer(text):
        if found.start() != at:
            break
        at = found.end()
        name, kind = found[1], found[2]
        if name in slots or name == "old" or name == "a":
            raise CorpusError(f"{where}: slot {name!r} is there twice, or a name with a meaning of its own")
        if kind.startswith("("):
            options = tuple(option.strip() for option in kind[1:-1].split("|"))
            if len(set(options)) < 2 or not all(options):
                raise CorpusError(f"{where}: slot {name!r} needs two values at least, all different")
            slots[name] = options
        elif values.known(kind):
            slots[name] = kind
        else:
            raise CorpusError(f"{where}: slot {name!r} has an unknown type of value, {kind!r}")
    if at != len(text) or not slots:
        raise CorpusError(f"{where}: {text[at:][:40]!r} are no slots: write `x: type; name: type`")
    return slots


def _checked(d: _Draft) -> Kind:
    def refuse(why: str) -> CorpusError:
        return CorpusError(f"{d.where}: {why}")

    def names(template: str) -> set[str]:
        try:
            found = set(slots_of(template))
        except ValueError as error:
            raise refuse(f"{error} in {template!r}") from None
        for name in sorted(found - set(d.slots) - {"old"}):
            raise refuse(f"{{{name}}} in {template!r} is no slot of it")
        return found

    if "x" not in d.questions or set(d.questions) - set(d.slots):
        raise refuse(f"it asks for {sorted(d.questions)}: {{x}} must be asked for, and nothing that is no slot")
    keys: dict[str, frozenset[str]] = {}
    for slot, asked in d.questions.items():
        named = [names(question) for question in asked]
        if any(slot in n or "old" in n for n in named):
            raise refuse(f"a question for {{{slot}}} has the value in it")
        if any(n != named[0] for n in named):
            raise refuse(f"questions for {{{slot}}} name different slots: {[sorted(n) for n in named]}")
        if len({q.lower() for q in asked}) < QUESTIONS_MIN:
            raise refuse(f"{{{slot}}} has {len(set(asked))} questions, fewer than {QUESTIONS_MIN}")
        keys[slot] = frozenset(named[0])
        answer = d.replies.get(slot)
        if answer is None or slot not in names(answer) or names(answer) - {slot} - keys[slot]:
            raise refuse(
                f"{{{slot}}} needs an answer `={'' if slot == 'x' else slot} ...` with it and with nothing the question does not name"
            )
        told = sum(slot in names(s) for s in d.statements)
        if told < (STATEMENTS_MIN if slot == "x" else SECOND_MIN):
            raise refuse(f"{told} statements tell {{{slot}}}, fewer than {STATEMENTS_MIN if slot == 'x' else SECOND_MIN}")
    unused = sorted(set(d.slots) - set().union(*(names(s) for s in d.statements)))
    if unused:
        raise refuse(f"no statement uses {{{unused[0]}}}: leave the slot out")
    if set(d.replies) - set(d.questions):
        raise refuse("an answer has no questions")
    for text in d.statements:
        asked_here = names(text) & set(d.questions)
        if not asked_here:
            raise refuse(f"nothing is told in {text!r}")
        if "old" in names(text) and "x" not in asked_here:
            raise refuse(f"{{old}} without {{x}} in {text!r}")
        for slot in asked_here:
            if keys[slot] - names(text):
                raise refuse(f"{text!r} does not say {sorted(keys[slot] - names(text))}, which the question for {{{slot}}} names")
            if len(re.findall(rf"\{{(?:[aA] )?{slot}\}}", text, re.IGNORECASE)) > 1:
                raise refuse(f"{{{slot}}} stands twice in {text!r}")
    for text in d.corrections:
        if "x" not in names(text):
            raise refuse(f"the correction {text!r} has no {{x}}")
    if len({s.lower() for s in d.statements}) < len(d.statements):
        raise refuse("a statement stands twice")
    return Kind(d.name, d.slots, tuple(d.statements), tuple(d.corrections), {s: tuple(q) for s, q in d.questions.items()}, d.replies, keys)
