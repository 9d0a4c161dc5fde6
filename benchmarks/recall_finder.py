"""What a recall's finder and encoder bring back for held-out questions, and how often it is called for nothing. Reads no model's weights.

    python benchmarks/recall_finder.py smollm2 [--data DIR] [--recall DIR] [--talks 60] [--part validation] [--finder-alone]

Each question is asked among the messages of its own conversation and 48 ordinary ones, as `lm2 eval --only natural` has them; and among the messages of all
conversations. The last two lines are messages that ask for nothing told: how many were taken for one that does.
"""

import argparse
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lm2.models.checkpoints.recalls import place_of
from lm2.models.layout import open_folder
from lm2.models.recall import as_read, nearness, open_recall
from lm2.models.tasks.natural import talk
from lm2.models.text.tokenizer import Tokenizer
from lm2.runtime.evaluation import natural
from lm2.runtime.loading import find_model

OTHERS, KEPT = 48, (1, 2, 3, 4, 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--data", type=Path, help="a folder of dialogues with marked values: its held-out services too")
    parser.add_argument("--recall", type=Path, help="instead of the model's own")
    parser.add_argument("--talks", type=int, default=60)
    parser.add_argument("--part", choices=tuple(natural.PARTS), default="validation", help="of the conversations written by hand: on test nothing is chosen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finder-alone", action="store_true", help="without the encoder")
    given = parser.parse_args()
    folder = open_folder(find_model(given.model), quantized=True, exported=True)
    place = given.recall or place_of(folder.path)
    if place is None:
        raise SystemExit(f"{given.model} has no recall: give one with --recall")
    recall = open_recall(place, folder.config)
    encode = partial(Tokenizer.load(folder.path).encode, plain=True)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(encode(as_read(text)))[: recall.tokens]

    vectors: dict[str, np.ndarray] = {}

    def scored(message: str, passages: Sequence[str]) -> tuple[np.ndarray, bool]:
        """Of each passage, as a session has it; and whether passages are read."""
        scores, nothing = recall.finder.scores(ids(message), [ids(p) for p in passages])
        called = bool(recall.nearest(scores, nothing))
        if recall.encoder is None or given.finder_alone:
            return scores, called
        best = [int(i) for i in np.argsort(-scores, kind="stable")[: recall.encoder.among]]
        new = [t for t in dict.fromkeys([message, *(passages[i] for i in best)]) if t not in vectors]
        vectors.update(zip(new, recall.encoder.vectors(new), strict=True))
        both = np.full_like(scores, -np.inf)  # (p,)
        for i in best:
            both[i] = scores[i] + recall.encoder.weight * nearness(vectors[message], vectors[passages[i]])
        return both, called

    ordinary = talk.ordinary("heldout")
    others, idle = list(ordinary[:OTHERS]), ordinary[OTHERS:]
    talks = [natural.told(n, given.seed, [], given.part) for n in range(given.talks)]
    if given.data is not None:
        read = natural.from_dialogues(given.data)
        talks += random.Random(given.seed).sample(read, min(given.talks, len(read)))
    every = [text for told in talks for text, _ in told.turns] + others
    ranks: dict[str, list[int]] = {}
    called: dict[str, list[bool]] = {}
    begin = 0
    for number, told in enumerate(talks):
        own = [text for text, _ in told.turns]
        for q in told.questions:
            for name, passages, at in ((told.source, own + others, q.turn), (f"{told.source}, among {len(every)}", every, begin + q.turn)):
                scores, read = scored(q.question, passages)
                ranks.setdefault(name, []).append(int((scores > scores[at]).sum()) if scores[at] > -np.inf else len(passages))
                called.setdefault(name, []).append(read)
        if told.source != "dialogues":
            for n, message in enumerate(own):
                called.setdefault("nothing told is asked for: messages that tell", []).append(scored(message, own[:n] + others)[1])
            if number < len(idle):
                called.setdefault("nothing told is asked for: ordinary messages", []).append(scored(idle[number], own + others)[1])
        begin += len(own)
    print(f"{place}: margin {recall.margin:g}, seed {given.seed}, {given.part} part; right message among the first {', '.join(map(str, KEPT))}; called")
    for name in sorted(ranks, key=lambda n: ("among" in n, n)):
        found = "  ".join(f"{100 * sum(r < k for r in ranks[name]) / len(ranks[name]):3.0f}%" for k in KEPT)
        print(f"{name:<44} {len(ranks[name]):4} questions  {found}   called {100 * sum(called[name]) / len(called[name]):.0f}%")
    for name in called:
        if name not in ranks:
            print(f"{name:<52} {sum(called[name])} of {len(called[name])}")


if __name__ == "__main__":
    main()
