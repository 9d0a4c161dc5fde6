"""Ordinary questions with and without something in the memory: 20 greedy answers side by side, as a Markdown table.

    python benchmarks/side_by_side.py MODEL [--tokens 32] [--seed 0]

Left: a fresh session, whose memory was never written, which is the backbone exactly. Right: the same question in the fresh chunk of a session
that was told facts and other talk over several chunks. Prints how many answers are word for word the same.
"""

import argparse
import tempfile
from pathlib import Path

from lm2.models.tasks.recall import conversations
from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampling
from lm2.runtime.session.session import Session

QUESTIONS = (
    "What is the capital of France?", "Who wrote Romeo and Juliet?", "What is 7 plus 5?", "Name three primary colors.", "What is the boiling point of water?",
    "Explain gravity in one sentence.", "What is the largest planet?", "Give me a synonym for happy.", "What do bees make?", "How many days are in a week?",
    "What is the opposite of cold?", "Write a short sentence about rain.", "What is a noun?", "Why is the sky blue?", "What language is spoken in Brazil?",
    "What is photosynthesis?", "Name a mammal that can fly.", "How do I boil an egg?", "What is the square root of 81?", "Who painted the Mona Lisa?",
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=0)
    given = options.parse_args()
    print(f"seed {given.seed}, greedy, at most {given.tokens} tokens")
    model = load(given.model, "torch", threads=given.threads)
    greedy = Sampling(temperature=0.0)
    told = Session(model, sampling=greedy, seed=0)
    talk = next(conversations("chat", given.seed, "validation", 4, lambda text: len(model.encode(text)), model.config.memory.chunk - 32))
    for chunk in talk.chunks:
        told.read("\n".join(turn.content for turn in chunk))
    same = 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "told.lm2s"
        told.save(file)
        for question in QUESTIONS:
            plain = Session(model, sampling=greedy, seed=0).say(question, given.tokens)
            after = Session.restore(model, file).say(question, given.tokens)
            same += plain == after
            rows.append((question, plain, after))
    print(f"{len(talk.chunks)} chunks told, {told.at.written} tokens in the memory; {same} of {len(QUESTIONS)} answers are word for word the same\n")
    print("| question | backbone | with a written memory |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(" ".join(text.split()).replace("|", "/") for text in row) + " |")


if __name__ == "__main__":
    main()
