"""Should a memory's row hold what its token read? Facts told first and facts told after another chunk, asked one chunk later, rows made both ways.

    python benchmarks/row_content.py MODEL [--samples 60] [--chunk 128] [--threads 1]

The samples are those of `lm2 eval MODEL --task recall --only chat --distances 1`; half of them tell other things for a chunk first. Nothing is
trained: the same weights answer with rows of `both` (token and what it read, the paper's equation 6) and of the `token` alone. The bank is empty
while the first chunk is read, so a fact told there has the same row either way.
"""

import argparse

from common import command, machine, table, versions


def answered(model, both, samples, chunk):
    """Right answers and their number, of facts told in the first chunk and in the second."""
    from lm2.runtime.evaluation.cells import Examiner
    from lm2.runtime.evaluation.render import Renderer
    from lm2.runtime.evaluation.sources import recall_cells
    from lm2.runtime.evaluation.streams import Reader, streams_at_once

    for layer in model.config.memory.layers:
        model.backend.model.blocks[layer].memory.both = both
    reader = Reader(model.backend, model.eos, 24, lambda: None)
    renderer = Renderer(model, None, chunk, reader.longest)
    (cell,) = recall_cells(("chat",), (1,), "validation", 0, renderer)
    examiner = Examiner(model, renderer, reader, streams_at_once(model.backend))
    outcomes = [o for batch in examiner.outcomes(cell, samples) for o in batch]
    groups = [[o.right for o in outcomes if o.chunks == n] for n in (1, 2)]
    return [(sum(group), len(group)) for group in groups]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    from lm2.runtime.loading import load

    model = load(given.model, "torch", dtype="bfloat16", threads=given.threads)
    rows = []
    for name, both in (("both", True), ("token", False)):
        first, after = answered(model, both, given.samples, given.chunk)
        rows.append([name, *(f"{right} of {count} ({100 * right / count:.0f}%)" for right, count in (first, after))])
    print(f"`{command()}`  \n{machine()}, {versions('torch')}, trained with content `{model.config.memory.content}`\n")
    print(table(["row made of", "told in the first chunk", "told after another chunk"], rows))


if __name__ == "__main__":
    main()
