"""What a recall's finder brings back for held-out questions, and how often it is called for nothing. Reads no model's weights.

    python benchmarks/recall_finder.py smollm2 [--data DIR] [--recall DIR] [--talks 60]

Each question is asked among the messages of its own conversation and 48 ordinary ones, as `lm2 eval --only natural` has them; and among the messages of all
conversations. The last two lines are messages that ask for nothing told: how many were taken for one that does.
"""

import argparse
import random
from functools import partial
from pathlib import Path

from lm2.models.checkpoints.recalls import place_of
from lm2.models.layout import open_folder
from lm2.models.recall import as_read, open_recall
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
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = open_folder(find_model(given.model), quantized=True, exported=True)
    place = given.recall or place_of(folder.path)
    if place is None:
        raise SystemExit(f"{given.model} has no recall: give one with --recall")
    recall = open_recall(place, folder.config)
    encode = partial(Tokenizer.load(folder.path).encode, plain=True)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(encode(as_read(text)))[: recall.tokens]

    ordinary = talk.ordinary("heldout")
    others, idle = [ids(t) for t in ordinary[:OTHERS]], ordinary[OTHERS:]
    talks = [natural.told(n, given.seed, []) for n in range(given.talks)]
    if given.data is not None:
        read = natural.from_dialogues(given.data)
        talks += random.Random(given.seed).sample(read, min(given.talks, len(read)))
    every = [ids(text) for told in talks for text, _ in told.turns] + others
    ranks: dict[str, list[int]] = {}
    called: dict[str, list[bool]] = {}
    begin = 0
    for number, told in enumerate(talks):
        own = [ids(text) for text, _ in told.turns]
        for q in told.questions:
            for name, passages, at in ((told.source, own + others, q.turn), (f"{told.source}, among {len(every)}", every, begin + q.turn)):
                scores, nothing = recall.finder.scores(ids(q.question), passages)
                ranks.setdefault(name, []).append(int((scores > scores[at]).sum()))
                called.setdefault(name, []).append(bool(recall.nearest(scores, nothing)))
        if told.source != "dialogues":
            for n, message in enumerate(own):
                called.setdefault("nothing told is asked for: messages that tell", []).append(bool(recall.nearest(*recall.finder.scores(message, own[:n] + others))))
            if number < len(idle):
                called.setdefault("nothing told is asked for: ordinary messages", []).append(bool(recall.nearest(*recall.finder.scores(ids(idle[number]), own + others))))
        begin += len(own)
    print(f"{place}: margin {recall.margin:g}, seed {given.seed}; right message among the first {', '.join(map(str, KEPT))}; called")
    for name in sorted(ranks, key=lambda n: ("among" in n, n)):
        found = "  ".join(f"{100 * sum(r < k for r in ranks[name]) / len(ranks[name]):3.0f}%" for k in KEPT)
        print(f"{name:<44} {len(ranks[name]):4} questions  {found}   called {100 * sum(called[name]) / len(called[name]):.0f}%")
    for name in called:
        if name not in ranks:
            print(f"{name:<52} {sum(called[name])} of {len(called[name])}")


if __name__ == "__main__":
    main()
