"""One conversation carried from backend to backend, each turn beside the session that stayed on the first: greedy tokens, and the bank in the file.

    python benchmarks/carried.py gemma3-270m

Float32 on a CPU; each turn in a process of its own. Control: the last turn said to a new session must be answered otherwise. Exit code 1 where
tokens part, or where the control's do not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TURNS = (
    "The ferry to the island leaves at nine in the morning, and Ines has the tickets. Where do ferries go in winter?",
    "Three countries on the Danube are Germany, Austria and Hungary. Name another one, and its capital.",
    "The ferry was late, so Ines read a book about whales. What do whales eat?",
)


def one(model: str, source: str, target: str, text: str, backend: str, tokens: int, window: int) -> dict[str, Any]:
    """Open the session file `source` (or begin one), say `text`, save to `target`: the answer's ids, and the least lead of a chosen logit."""
    import lm2

    began = time.monotonic()
    loaded = lm2.load(model, backend, "cpu", "float32")
    sampling = lm2.Sampling(temperature=0)
    session = lm2.Session.restore(loaded, source) if source else lm2.Session(loaded, sampling=sampling, seed=0, window=window)
    ids: list[int] = []
    leads: list[float] = []

    def hear(logits: np.ndarray, token: int) -> None:  # (v,)
        second, first = np.partition(logits.astype(np.float64), -2)[-2:]
        ids.append(int(token))
        leads.append(float(first - second))

    session.chosen = hear
    session.say(text, tokens)
    session.save(target)
    return {"ids": ids, "text": loaded.text.decode(ids), "lead": min(leads), "seconds": round(time.monotonic() - began, 1)}


def bank(file: Path) -> np.ndarray:
    """The bank of the session in a file, float64."""
    from lm2.runtime.statefile.file import read_session

    return np.asarray(read_session(file, None).now.bank, np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx", "mlx"], help="one for each of the three turns")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(one(a.model, *a.one, a.tokens, a.window)))
        return

    def said(source: Path | str, target: Path, text: str, backend: str) -> dict[str, Any]:
        options = ["--tokens", str(a.tokens), "--window", str(a.window), "--one", str(source), str(target), text, backend]
        done = subprocess.run([sys.executable, __file__, a.model, *options], stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    first, wrong = a.backends[0], 0
    with tempfile.TemporaryDirectory() as work:
        moved: Path | str = ""
        stayed: Path | str = ""
        for turn, (backend, text) in enumerate(zip(a.backends, TURNS, strict=False)):
            here, there = Path(work) / f"moved{turn}.lm2s", Path(work) / f"stayed{turn}.lm2s"
            got, want = said(moved, here, text, backend), said(stayed, there, text, first)
            moved, stayed, x, y = here, there, bank(here), bank(there)
            nmse = ((x - y) ** 2).sum() / max((y**2).sum(), np.finfo(float).tiny)
            wrong += got["ids"] != want["ids"]
            print(
                f"turn {turn + 1} on {backend}: {len(got['ids'])} tokens, {'the same' if got['ids'] == want['ids'] else 'OTHERS'} as on {first}; "
                f"least lead {got['lead']:.3f}; bank NMSE {nmse:.1e}, root mean square {np.sqrt((y**2).mean()):.3f}; {got['seconds']} s: {got['text']!r}",
                flush=True,
            )
        fresh = said("", Path(work) / "fresh.lm2s", TURNS[len(a.backends) - 1], first)
        wrong += fresh["ids"] == want["ids"]
        print(f"control, the last turn said to a new session: {'THE SAME' if fresh['ids'] == want['ids'] else 'other'} tokens")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
