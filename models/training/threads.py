"""Conversations for a memory that people talk to: facts in their own words among other talk, and the questions for them. Knows texts and tokens.

A thread is what a window holds: the head, then turns. Its facts come from the corpus of told facts (models/tasks/natural), from dialogues in which
values stand marked, and from templates (models/tasks/varied); other talk from ordinary messages with the backbone's own answers and from dialogues.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..tasks.fillers import exchanges
from ..tasks.natural import kinds, talk
from ..tasks.natural.dialogues import Dialogue
from ..tasks.recall import THANKS, reply
from ..tasks.varied import Varied

SAID = "You said {}."
MESSAGE_SHARE = 0.3  # of a memory's look at the message that tells a fact, beside one at the value's own token
Encode = Callable[[str], list[int]]
Turn = Callable[[str, str], list[int]]


@dataclass(frozen=True)
class Fact:
    """A fact of a thread. begin, end: the tokens of the message that tells it; at: those of its value in there, as far as they can be told; value,
    questions, reply: texts; key: of two with the same the later counts."""

    begin: int
    end: int
    at: tuple[int, int] | None
    value: str
    questions: tuple[str, ...]
    reply: str
    key: tuple[str, ...]


@dataclass
class Thread:
    """ids: the head's `head` tokens, then the turns. quiet (of each token): how strongly it should stay unwritten, 0 where facts are told."""

    ids: list[int]
    head: int
    quiet: list[float]
    facts: list[Fact] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Tokens that are written."""
        return len(self.ids) - self.head


@dataclass(frozen=True)
class Question:
    """A question after a window, with its answer. ids: what is fed; targets: of each, -100 where none; value: places whose target is a token of the
    value. fact: what it asks for, None where no memory helps."""

    ids: list[int]
    targets: list[int]
    value: list[int]
    fact: Fact | None

    def told(self, number: int) -> int | None:
        """Where the message tells token `number` of the value, counted as the fact's own places; None where that cannot be told. Where what was told
        and what is said differ in length, first tokens belong together, and later ones from the end."""
        if self.fact is None or self.fact.at is None:
            return None
        begin, end = self.fact.at
        place = begin + number if number == 0 or end - begin >= len(self.value) else end - len(self.value) + number
        return place if begin <= place < end else None


class Threads:
    """Draws threads and questions. turn(role, content): ids of a turn after others; asked(content): of a user's turn and what opens an answer;
    said(content): of an answer behind that, without the blank after it. head: ids of what begins a window. answers: ordinary messages, questions
    nobody told the answer to and messages that tell something, with the backbone's own answers. marked: dialogues with values. others: dialogues, each of (role, content). books: paragraphs in their order; begin: ids that a plain text begins with;
    encode: of plain text."""

    def __init__(
        self,
        head: Sequence[int],
        turn: Turn,
        asked: Encode,
        said: Encode,
        encode: Encode,
        varied: Varied,
        answers: Mapping[str, str],
        marked: Sequence[Dialogue] = (),
        others: Sequence[Sequence[tuple[str, str]]] = (),
        books: Sequence[str] = (),
        begin: Sequence[int] = (),
        split: str = "train",
    ):
        self.head, self._turn, self._asked, self._said, self._encode = list(head), turn, asked, said, encode
        self.varied, self.answers, self.split = varied, dict(answers), split
        self.ordinary = [m for m in talk.ordinary(split) if m in self.answers]
        self.replies = [self.answers[m] for m in self.ordinary]
        self.unknown = [m for m in self.answers if m not in set(self.ordinary)]
        self.marked = [d for d in marked if d.split == split and d.values]
        self.others, self.books, self.begin = others, books, tuple(begin)

    def thread(self, rng: random.Random, tokens: int, share: float = 0.5) -> Thread:
        """A thread of at least `tokens` tokens; about `share` of its turns tell something."""
        out = Thread(list(self.head), len(self.head), [0.5] * len(self.head))
        small = self._small(rng)
        while len(out.ids) < tokens:
            if rng.random() >= share:
                self._chat(out, rng, small)
                continue
            self._something(out, rng)
        return out

    def _something(self, out: Thread, rng: random.Random) -> None:
        way = rng.random()
        if way < 0.2 and self.marked:
            self._marked(out, rng)
        elif way < 0.35:
            told = self.varied.draw(rng)
            self._tell(out, rng, self.varied.say(rng, told), [_of_template(self.varied, rng, told)])
        else:
            self._natural(out, rng)

    def book(self, rng: random.Random, tokens: int) -> list[int]:
        """`tokens` ids of books read on from a drawn paragraph."""
        ids: list[int] = []
        at = rng.randrange(len(self.books))
        while len(ids) < tokens:
            ids += self._encode(self.books[at % len(self.books)] + "\n")
            at += 1
        return ids[:tokens]

    def read(self, rng: random.Random, tokens: int) -> Thread:
        """A thread in which books are read and nothing is told."""
        ids = [*self.begin, *self.book(rng, tokens)]
        return Thread(ids, len(self.begin), [1.0] * len(ids))

    def read_on(self, rng: random.Random, before: int, tokens: int) -> tuple[list[int], Question]:
        """A book's `before` tokens in a window, and the `tokens` that come next, each to be predicted."""
        ids = [*self.begin, *self.book(rng, before + tokens)]
        next_ = ids[-tokens:]
        return ids[:-tokens], Question(next_, [*next_[1:], -100], [], None)

    def messages(self, rng: random.Random) -> list[tuple[list[int], list[Fact]]]:
        """Messages that tell something, each by itself: its ids, and the facts in it whose value can be placed. Of one drawn exchange; may be empty."""
        out = Thread([], 0, [])
        self._something(out, rng)
        told: dict[tuple[int, int], list[Fact]] = {}
        for fact in {f.key: f for f in out.facts}.values():
            if fact.at is not None:
                begin = fact.begin
                own = replace(fact, begin=0, end=fact.end - begin, at=(fact.at[0] - begin, fact.at[1] - begin))
                told.setdefault((begin, fact.end), []).append(own)
        return [(out.ids[begin:end], facts) for (begin, end), facts in told.items()]

    def sequence(self, rng: random.Random) -> tuple[list[int], list[Fact], int]:
        """One to three messages that tell something one after the other, some with an answer: ids, facts with places in them, and how many messages."""
        ids: list[int] = []
        facts: list[Fact] = []
        most, count = rng.choice((1, 1, 2, 3)), 0
        while count < most:
            for message, told in self.messages(rng):
                begin, count = len(ids), count + 1
                for fact in told:
                    assert fact.at is not None
                    facts.append(replace(fact, begin=begin, end=begin + fact.end, at=(begin + fact.at[0], begin + fact.at[1])))
                ids += message
                if rng.random() < 0.6:
                    ids += self._turn("assistant", rng.choice(THANKS))
        return ids, facts, count

    def _put(self, out: Thread, role: str, content: str, quiet: float) -> tuple[int, int]:
        begin = len(out.ids)
        new = self._turn(role, content)
        out.ids += new
        out.quiet += [quiet] * len(new)
        return begin, len(out.ids)

    def _tell(self, out: Thread, rng: random.Random, text: str, facts: Sequence[tuple[str, tuple[str, ...], str, tuple[str, ...]]]) -> None:
        begin, end = self._put(out, "user", text, 0.0)
        out.facts += [Fact(begin, end, self._at(out, begin, end, fact[0]), *fact) for fact in facts]
        self._put(out, "assistant", rng.choice(THANKS) if rng.random() < 0.5 or not self.replies else rng.choice(self.replies), 1.0)

    def _at(self, out: Thread, begin: int, end: int, value: str) -> tuple[int, int] | None:
        found = self._places(out.ids[begin:end], value)
        return (begin + found[0], begin + found[-1] + 1) if found else None

    def _natural(self, out: Thread, rng: random.Random) -> None:
        told = kinds.draw_all(rng, self.split)
        if told[0].earlier:
            self._tell(out, rng, told[0].earlier, [])
        text = told[0].text
        if not told[0].earlier and len(told) == 1:
            roll = rng.random()
            if roll < 0.4:
                text = kinds.chatty(rng, told[0], self.split).text
            elif roll < 0.55:
                other = kinds.draw(rng, self.split)
                if not other.earlier and other.key[:2] != told[0].key[:2]:
                    told = (*told, other)
                    text = kinds.together(rng, told)
        self._tell(out, rng, text, [(t.value, t.questions, t.reply, t.key) for t in told])

    def _marked(self, out: Thread, rng: random.Random) -> None:
        dialogue = rng.choice(self.marked)
        turns = dialogue.turns[: rng.choice((4, 6, 8, 10))]
        last = {v.slot: v for v in dialogue.values if v.questions and v.turn < len(turns)}
        for number, (role, content) in enumerate(turns):
            values = [v for v in last.values() if v.turn == number]
            begin, end = self._put(out, role, content, 0.0 if values else (0.4 if role == "user" else 1.0))
            for v in values:
                out.facts.append(Fact(begin, end, self._at(out, begin, end, v.text), v.text, v.questions, SAID.format(v.text), ("marked", v.slot)))

    def _small(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        return exchanges(rng, "train")

    def _chat(self, out: Thread, rng: random.Random, small: Iterator[tuple[str, str]]) -> None:
        roll = rng.random()
        if roll < 0.55 and self.ordinary:
            message = rng.choice(self.ordinary)
            pairs = [("user", message), ("assistant", self.answers[message])]
        elif roll < 0.75 and self.others:
            turns = rng.choice(self.others)
            start = rng.randrange(0, max(1, len(turns) - 4), 2)
            pairs = list(turns[start : start + rng.choice((2, 4))])
        else:
            said, answered = next(small)
            pairs = [("user", said), ("assistant", answered)]
        for role, content in pairs:
            self._put(out, role, content, 0.4 if role == "user" else 1.0)

    def question(self, rng: random.Random, fact: Fact) -> Question:
        """One of the questions for a fact, answered."""
        question = rng.choice(fact.questions)
        roll = rng.random()
        if roll < 0.15:
            question = rng.choice(kinds.ASK_LEADS) + question
        elif roll < 0.25:
            question += ("" if question[-1] in "?.!" else "?") + rng.choice(kinds.ASK_TAILS)
        return self._answered(question, fact.reply, fact)

    def nothing(self, rng: random.Random) -> Question:
        """Something that no memory helps with: ordinary, a question for what nobody told, or something told, with the backbone's own answer."""
        chosen = self.unknown if self.unknown and (rng.random() < 0.45 or not self.ordinary) else self.ordinary
        message = rng.choice(chosen)
        return self._answered(message, self.answers[message], None)

    def _answered(self, question: str, answer: str, fact: Fact | None) -> Question:
        asked, body = self._asked(question), self._said(answer)
        ids = [*asked, *body]
        targets = [-100] * (len(asked) - 1) + body + [-100]
        return Question(ids, targets, [len(asked) - 1 + i for i in self._places(body, fact.value)] if fact else [], fact)

    def _places(self, body: list[int], value: str) -> list[int]:
        for text in (" " + value, value, value[0].upper() + value[1:], " " + value[0].upper() + value[1:]):
            want = self._encode(text)
            for i in range(len(body) - len(want) + 1):
                if body[i : i + len(want)] == want:
                    return list(range(i, i + len(want)))
        return []


def _of_template(varied: Varied, rng: random.Random, told) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:  # type: ignore[no-untyped-def]
    return told.value, tuple(varied.ask(rng, told) for _ in range(3)), reply(told), ("template", told.kind, told.other)
