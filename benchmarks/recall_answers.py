"""What a chat answers from what it was told, and where the rest is lost: held-out conversations, 48 other messages, then the questions.

    python benchmarks/recall_answers.py smollm2 [--data DIR] [--recall DIR] [--first 400] [--talks 40] [--part validation] [--backend torch] [--show]

Nothing of the conversation is in the window when it is asked, and nothing in the memory: what is right comes from the recall alone. Greedy, 24 tokens at most;
right is an answer that has the value. *near*: the finder brings the message that tells it; *made from*: the answer is made from it. Beside it the same
questions with another conversation's messages, and with none. The last lines are held-out messages that ask for nothing told.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lm2
from lm2.models.recall import open_recall
from lm2.models.tasks.natural import talk
from lm2.runtime.evaluation import natural
from lm2.runtime.loading import Model

OTHERS, TOKENS = 48, 24


def told(model: Model, turns: Sequence[tuple[str, str | None]]) -> lm2.Session:
    """A session in which a person said these, was answered so, and nothing else is known."""
    session = lm2.Session(model, sampling=lm2.Sampling(temperature=0.0), seed=0)
    for message, answer in turns:
        session.hear(message, answer or "All right.")
        session.at = session.feeder.new()
    return session


def asked(session: lm2.Session, question: str) -> tuple[str, list[str], list[str]]:
    """The answer, the messages that were near, and those it is made from."""
    fork = session.fork()
    fork.at = fork.feeder.new()
    assert fork.recalling is not None
    passages = fork.recalling.passages(fork.transcript, fork.numbers)
    near = [passages[i].text for i in fork.recalling.nearest(question, passages)]
    answer = fork.say(question, max_tokens=TOKENS)
    return answer, near, [p.text for p in fork.recalled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="a folder of dialogues with marked values: its held-out services too")
    parser.add_argument("--recall", type=Path, help="instead of the model's own")
    parser.add_argument("--first", type=int, default=400)
    parser.add_argument("--talks", type=int, default=40)
    parser.add_argument("--part", choices=tuple(natural.PARTS), default="validation", help="of the conversations written by hand: on test nothing is chosen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-controls", action="store_true", help="without another's messages and none")
    parser.add_argument("--show", action="store_true", help="every wrong answer")
    given = parser.parse_args()
    model = lm2.load(given.model, backend=given.backend, threads=given.threads)
    if given.recall is not None:
        model = replace(model, recall=open_recall(given.recall, model.config))
    if model.recall is None:
        raise SystemExit(f"{given.model} has no recall: give one with --recall")
    ordinary, source = talk.ordinary("heldout"), [] if given.data is None else natural.from_dialogues(given.data)
    others, counts, began = [(message, None) for message in ordinary[:OTHERS]], Counter[tuple[str, str]](), time.monotonic()
    before: list[tuple[str, str | None]] = []
    for number in range(given.first, given.first + given.talks):
        talked = natural.told(number, given.seed, source, given.part)
        messages = [message for message, _ in talked.turns]
        turns = list(talked.turns)
        session, another, none = told(model, turns + others), told(model, before + others), told(model, ())
        for q in talked.questions:
            answer, near, made = asked(session, q.question)
            there = messages[q.turn]
            found, used = (any(text in there or there in text for text in texts) for texts in (near, made))
            right = q.is_right(answer)
            for what, count in (("asked", 1), ("called", bool(near)), ("near", found), ("made from", used), ("right", right), ("right of those", right and used)):
                counts[talked.source, what] += count
            if not given.no_controls:
                if before:
                    counts[talked.source, "another's"] += q.is_right(asked(another, q.question)[0])
                counts[talked.source, "none"] += q.is_right(asked(none, q.question)[0])
            if given.show and not right:
                print(f"  {there!r}\n    {q.question!r} ({q.value}): {answer.strip()[:90]!r}; {'made from it' if used else 'near' if found else 'called' if near else 'idle'}")
        for n, message in enumerate(messages):
            _count(counts, "messages that tell", told(model, turns[:n] + others), message)
        _count(counts, "ordinary messages", session, ordinary[OTHERS + number % (len(ordinary) - OTHERS)])
        before = turns
        print(f"{number}: {time.monotonic() - began:.0f} s  " + _line(counts, talked.source), flush=True)
    print(f"seed {given.seed}, {given.part} part, conversations {given.first} to {given.first + given.talks - 1}, {given.backend}")
    for name in sorted({source for source, _ in counts}):
        print(_line(counts, name))


def _count(counts: Counter[tuple[str, str]], name: str, session: lm2.Session, message: str) -> None:
    """Whether a message that asks for nothing told is near to something, and whether it would be answered from it."""
    fork = session.fork()
    assert fork.recalling is not None
    near = fork.recalling.nearest(message, fork.recalling.passages(fork.transcript, fork.numbers))
    for what, count in (("asked", 1), ("called", bool(near)), ("made from", near and fork.beside(message) is not None)):
        counts[name, what] += bool(count)


def _line(counts: Counter[tuple[str, str]], name: str) -> str:
    own = {what: count for (source, what), count in counts.items() if source == name}
    return f"{name:<20} {own.pop('asked', 0):4} asked  " + "  ".join(f"{what} {count}" for what, count in own.items())


if __name__ == "__main__":
    main()
