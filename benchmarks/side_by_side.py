"""Ordinary questions with and without a full memory: 20 greedy answers side by side, as Markdown.

    python benchmarks/side_by_side.py MODEL [--tokens 48] [--seed 0] [--threads 0] [--window W] [--out FILE.md]

The questions and the conversations are those of `lm2 eval --task harm` (runtime/evaluation/full_bank.py): held-out facts are told in people's own
words, other things are talked about until every row of the memory was written and no fact stands in the window, then a held-out question that no
training knows is asked. Left: the backbone, the model opened without its memory, with the same words in its window. Right: the session as it is. Every
five questions come after a conversation of their own. Prints how many answers and first sentences are word for word the same.
"""

import argparse
import sys
from pathlib import Path

from lm2.models.errors import LM2Error
from lm2.runtime.evaluation.full_bank import FullBank
from lm2.runtime.evaluation.harm import first_sentence, unwritten
from lm2.runtime.loading import load
from lm2.runtime.session.session import Session

QUESTIONS, EACH = 20, 5


def pairs(bank: FullBank, backbone, tokens: int) -> list[tuple[int, str, str, str]]:
    """(conversation, question, the backbone's answer, the answer with the full memory) of every question."""
    out = []
    for number in range(QUESTIONS // EACH):
        told = bank.conversation(number).session
        bare = Session(backbone, sampling=told.sampling, seed=told.seed, window=told.feeder.size)
        bare.at = unwritten(bare.feeder, told.at)
        for question in bank.questions(number)[:EACH]:
            answers = []
            for session in (bare, told):
                asked = session.fork()
                asked.at = session.at  # its window is there, and is gone back to
                answers.append(asked.say(question, tokens).strip())
            out.append((number, question, *answers))
    return out


def markdown(found: list[tuple[int, str, str, str]]) -> str:
    """A line of totals, and the table."""
    same = sum(plain == after for _, _, plain, after in found)
    first = sum(first_sentence(plain) == first_sentence(after) for _, _, plain, after in found)
    lines = [f"{same} of {len(found)} answers and {first} first sentences are word for word the same.", ""]
    lines += ["| conversation | question | backbone | with a full memory |", "|---|---|---|---|"]
    for number, *texts in found:
        lines.append("| " + " | ".join([str(number), *(" ".join(text.split()).replace("|", "/") for text in texts)]) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--window", type=int, default=None, help="the model's by default")
    options.add_argument("--out", type=Path, default=None, help="write the Markdown here as well")
    given = options.parse_args()
    try:
        model, backbone = (load(given.model, "torch", threads=given.threads, memory=memory) for memory in (True, False))
        found = pairs(FullBank(model, given.seed, given.window), backbone, given.tokens)
    except LM2Error as error:
        sys.exit(str(error))
    m = model.config.memory
    text = (
        f"`python benchmarks/side_by_side.py {given.model} --tokens {given.tokens} --seed {given.seed}`: seed {given.seed}, greedy, at most {given.tokens} tokens; "
        f"after conversations that filled {m.slots} rows, a window of {given.window or model.window} tokens.\n\n{markdown(found)}\n"
    )
    print(text, end="")
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
