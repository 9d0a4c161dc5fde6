"""What a recall's finder and encoder bring back for held-out questions, and how often it is called for nothing. Reads no model's weights.

    python benchmarks/recall_finder.py smollm2 [--data DIR] [--recall DIR] [--talks 60] [--part validation] [--finder-alone]

Each question is asked among the messages of its own conversation and 48 ordinary ones, as `lm2 eval --only natural` has them; and among the messages of all
conversations. A message that replies to a question of the other side goes with it, as in a session. The last two lines are messages that ask for nothing told: how many were taken for one that does.
"""

import argparse
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lm2.models.checkpoints.recalls import place_of
from lm2.models.layout import open_folder
from lm2.models.recall import nearness, open_recall
from lm2.models.tasks.natural import talk
from lm2.models.text.tokenizer import Tokenizer
from lm2.runtime.evaluation import natural
from lm2.runtime.loading import find_model
from lm2.runtime.session.recalling import Passage, Recalling

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
    recall = open_recall(place, folder.config)._replace(reader=None)  # what finder and encoder put first by themselves
    encode = partial(Tokenizer.load(folder.path).encode, plain=True)

    looking, vectors = Recalling(recall, encode), dict[str, np.ndarray]()

    def passages_of(turns: Sequence[tuple[str, str | None]]) -> list[Passage]:
        """What a session looks through after these turns, numbered as they are."""
        said = [{"role": role, "content": text or "All right."} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        return looking.passages(said, [n // 2 for n in range(len(said))])

    def scored(message: str, passages: Sequence[Passage]) -> tuple[np.ndarray, bool]:
        """Of each passage, as a session has it; and whether passages are read."""
        scores, nothing = recall.finder.scores(looking.ids(message)[: recall.tokens], [(p.around or p.ids)[: recall.tokens] for p in passages])
        called = bool(recall.nearest(scores, nothing))
        if recall.encoder is None or given.finder_alone:
            return scores, called
        best = [int(i) for i in np.argsort(-scores, kind="stable")[: recall.encoder.among]]
        new = [t for t in dict.fromkeys([message, *(passages[i].whole for i in best)]) if t not in vectors]
        vectors.update(zip(new, recall.encoder.vectors(new), strict=True))
        both = np.full_like(scores, -np.inf)  # (p,)
        for i in best:
            both[i] = scores[i] + recall.encoder.weight * nearness(vectors[message], vectors[passages[i].whole])
        return both, called

    ordinary = talk.ordinary("heldout")
    others, idle = passages_of([(text, None) for text in ordinary[:OTHERS]]), ordinary[OTHERS:]
    others = [p._replace(number=-1) for p in others]
    talks = [natural.told(n, given.seed, [], given.part) for n in range(given.talks)]
    if given.data is not None:
        read = natural.from_dialogues(given.data)
        talks += random.Random(given.seed).sample(read, min(given.talks, len(read)))
    each = [passages_of(told.turns) for told in talks]
    every = [(n, p) for n, own in enumerate(each) for p in own] + [(-1, p) for p in others]
    ranks: dict[str, list[int]] = {}
    called: dict[str, list[bool]] = {}
    for number, (told, own) in enumerate(zip(talks, each, strict=True)):
        for q in told.questions:
            for name, among in ((told.source, [*((number, p) for p in own), *((-1, p) for p in others)]), (f"{told.source}, among {len(every)}", every)):
                scores, read = scored(q.question, [p for _, p in among])
                right = max((float(s) for s, (n, p) in zip(scores, among, strict=True) if (n, p.number) == (number, q.turn)), default=-np.inf)
                ranks.setdefault(name, []).append(int((scores > right).sum()) if right > -np.inf else len(among))
                called.setdefault(name, []).append(read)
        if told.source != "dialogues":
            for n, (message, _) in enumerate(told.turns):
                called.setdefault("nothing told is asked for: messages that tell", []).append(scored(message, [*(p for p in own if p.number < n), *others])[1])
            if number < len(idle):
                called.setdefault("nothing told is asked for: ordinary messages", []).append(scored(idle[number], [*own, *others])[1])
    print(f"{place}: margin {recall.margin:g}, seed {given.seed}, {given.part} part; right message among the first {', '.join(map(str, KEPT))}; called")
    for name in sorted(ranks, key=lambda n: ("among" in n, n)):
        found = "  ".join(f"{100 * sum(r < k for r in ranks[name]) / len(ranks[name]):3.0f}%" for k in KEPT)
        print(f"{name:<44} {len(ranks[name]):4} questions  {found}   called {100 * sum(called[name]) / len(called[name]):.0f}%")
    for name in called:
        if name not in ranks:
            print(f"{name:<52} {sum(called[name])} of {len(called[name])}")


if __name__ == "__main__":
    main()
