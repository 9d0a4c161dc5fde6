"""The same targets under coverage guidance, with atheris (`pip install atheris`): `python benchmarks/reliability/guided.py config --seconds 60 --seed 1`.

libFuzzer keeps inputs that reach new lines of lm2; half of the mutations are the target's own, half libFuzzer's. It stops at the first fault and
writes the input beside. What it finds depends on time as well as on the seed: fuzz.py is the run that can be repeated. Linux.
"""

import random
import sys
import tempfile
from pathlib import Path

import kit


def main() -> None:
    parser = kit.arguments(__doc__ or "", ["session", "safetensors", "gguf", "tokenizer", "template", "config", "folder", "adapter"], "seconds", 60)
    a = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["lm2"]):
        from targets import open_target
    place = Path(tempfile.mkdtemp(prefix="lm2-guided-"))
    with atheris.instrument_imports(include=["lm2"]), open_target(a.names[0], place) as target:
        corpus = place / "corpus"
        corpus.mkdir()
        for i, data in enumerate(target.seeds):
            (corpus / str(i)).write_bytes(data)

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            rng = random.Random(seed)
            return target.mutate(rng, data)[:most] if rng.random() < 0.5 else atheris.Mutate(data, most)

        options = [f"-max_total_time={a.count}", f"-seed={a.seed}", "-timeout=5", "-rss_limit_mb=4096", f"-max_len={2 * max(map(len, target.seeds))}"]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], target.check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
