"""What a memory costs: the same model with its memory full and opened without it, interleaved in one run, for each backend.

    python benchmarks/memory_cost.py [--model smollm2-memory] [--backends torch,mlx,onnx] [--threads 1] [--rounds 7] [--out docs] [--add]

decode: a token at two places of a window, every row of the full memory read; both sides take turns token by token.
fold: what the end of a turn adds to the next call, beside that call without it, in the same place of the same window.
slide: the pause of a message that finds the window full, the tokens it runs, and the pause that is left when `Session.ahead` ran between the turns.
Without memory: `load(memory=False)`; for ONNX, which has its memory in the file, an export of the backbone alone (made in --folder, kept there).

Before anything is printed it checks that a memory never written gives the backbone's greedy tokens and logits, that a window folded on its way gives
the same numbers however its tokens are split, and that what was done ahead changes no answer; else it stops with exit code 1. With --add what
memory_cost.json in --out says of other backends and threads is kept. Exit code 1 also when an aim is missed. Float32, seed 0, processor CPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import command, long_text, machine, require_close, table, versions

DECODE_AIM, FOLD_AIM = 1.10, 4.0
CLOSE, GREEDY_TOKENS = 1e-4, 16
MESSAGE = "And what would you say about the weather on other planets?"


def opened(name: str, backend: str, threads: int, memory: bool, folder: Path):
    """The model with its memory or without, float32 on the CPU, and the threads that were set: None where the library has no switch."""
    import onnx_files

    import lm2
    from lm2.models.errors import BackendError
    from lm2.runtime.loading import find_model

    path, bare = find_model(name), {"memory": memory}
    if backend == "onnx" and not memory:
        config, bare = json.loads((path / "config.json").read_text()), {}
        source, path = path, folder / f"{config.get('name') or path.name}-bare"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            onnx_files.backbone_folder(source, path, onnx_files.bare_config(config, path.name))
    try:
        return lm2.load(path, backend, "cpu", "float32", threads, **bare), threads
    except BackendError as error:
        if backend != "mlx" or "threads" not in str(error):
            raise
    return lm2.load(path, backend, "cpu", "float32", **bare), None


def full_memory(backend, ids):
    """A state in which every row was written, by chunks of text."""
    m, state, done = backend.config.memory, None, 0
    while done < m.slots:
        part = [ids[(done + i) % len(ids)] for i in range(min(m.chunk, m.slots - done))]
        state = backend.commit(backend.extend(part, backend.start(1, state))[1])
        done += len(part)
    return state


def placed(backend, state, ids, size: int):
    """A window of `size` with ids in it, which read the memory and are not written: what stands after a slide."""
    return backend.extend(ids, backend.start(1, state, size, len(ids)))[1]


def greedy(backend, window, logits, count: int) -> list[int]:
    tokens = []
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits, window = backend.extend(tokens[-1:], window)
    return tokens


def check(on, off, state, ids, size: int) -> None:
    """The two equalities that need no session (see above). Ends the benchmark where one does not hold."""
    n = min(64, on.config.memory.chunk // 2)
    (a, x), (b, y) = (side.extend(ids[:n], side.start(1, None, size)) for side in (on, off))
    require_close("a memory never written, beside the backbone", a, b, CLOSE)
    if greedy(on, x, a, GREEDY_TOKENS) != greedy(off, y, b, GREEDY_TOKENS):
        sys.exit("no speed is reported: with a memory never written the greedy tokens are not the backbone's")
    found = []
    for step in (n, 1 + n // 5, 1):
        window = on.start(1, state, size)
        for turn in range(3):
            part = ids[turn * n : (turn + 1) * n]
            for begin in range(0, n, step):
                logits, window = on.extend(part[begin : begin + step], window)
            window = on.fold(window) if turn < 2 else window
        found.append((logits, on.to_host(on.memory(window))))
    for logits, bank in found[1:]:
        require_close("the logits after folds, tokens split", logits, found[0][0], CLOSE)
        require_close("the memory after folds, tokens split", bank, found[0][1], CLOSE)


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def decode(sides: dict, ids, position: int, size: int, steps: int, rounds: int) -> dict:
    """Milliseconds a token after `position` tokens, by side: a median for each round, sides in turn token by token."""
    begun = {name: placed(backend, state, ids[:position], size) for name, (backend, state) in sides.items()}
    out: dict = {name: [] for name in sides}
    for r in range(rounds + 1):  # the first is not counted
        windows, taken = dict(begun), {name: [] for name in sides}
        windows = {name: sides[name][0].rewind(window, position) for name, window in windows.items()}
        for i in range(steps):
            for name in list(sides)[:: 1 if (r + i) % 2 == 0 else -1]:
                began = time.perf_counter()
                _, windows[name] = sides[name][0].extend([ids[(position + i) % len(ids)]], windows[name])
                taken[name].append(1e3 * (time.perf_counter() - began))
        for name in sides if r else ():
            out[name].append(statistics.median(taken[name]))
    return out | {"ratio": statistics.median(a / b for a, b in zip(out["on"], out["off"], strict=True))}


def fold(backend, state, ids, position: int, size: int, turn: int, rounds: int) -> dict:
    """Milliseconds of a call of one token after a turn of `turn` tokens, and of the same call with the turn folded before it."""
    window, token = placed(backend, state, ids[:position], size), ids[:1]
    plain, folded = [], []
    for r in range(rounds + 1):
        if window.length + turn + 1 > size:
            window = placed(backend, state, ids[:position], size)
        _, window = backend.extend(ids[:turn], window)
        length = window.length
        backend.extend(token, window)
        window = backend.rewind(window, length)
        once = timed(lambda w=window: backend.extend(token, w))
        window = backend.rewind(window, length)
        began = time.perf_counter()
        window = backend.fold(window)
        _, window = backend.extend(token, window)
        both = 1e3 * (time.perf_counter() - began)
        window = backend.rewind(window, length)
        if r:
            plain.append(once)
            folded.append(both)
    added = [b - a for a, b in zip(plain, folded, strict=True)]
    return {"token": plain, "with_fold": folded, "fold": statistics.median(added), "ratio": statistics.median(x / a for x, a in zip(added, plain, strict=True))}


def full_window(model, state, size: int):
    """A session whose window the next message finds full, begun from a memory state (None: never written)."""
    import lm2
    from lm2.runtime.session.sampling import Sampling

    session = lm2.Session(model, sampling=Sampling(temperature=0.0), seed=0, window=size)
    session.at = session.at if state is None else session.at._replace(memory=state)
    words, n = long_text().split(), 0
    later = len(session.wording.turn(MESSAGE, first=False))
    while session.at.filled + later + size // 8 <= size:
        session.hear(" ".join(words[n : n + 8]), " ".join(words[n + 8 : n + 30]))
        n += 30
    return session


def slide(session) -> dict:
    """One message that finds the window full, without and with `ahead` before it: milliseconds until its first logits, tokens run, and its first token."""
    out: dict = {}
    for ahead in (False, True):
        fork, fed = session.fork(), []
        fork.at = fork.feeder.flush(fork.at)
        fork.feeder.on_feed = fed.append
        spent = timed(fork.ahead) if ahead else 0.0
        before = sum(fed)
        fork.say(MESSAGE, max_tokens=1)
        assert fork.reply is not None
        out["hidden" if ahead else "plain"] = {
            "ahead_ms": spent, "ahead_tokens": before, "pause_ms": 1e3 * fork.reply.prefill_s, "pause_tokens": sum(fed) - before, "first": fork.reply.tokens,
        }  # fmt: skip
    if out["plain"]["first"] != out["hidden"]["first"]:
        sys.exit("no speed is reported: what was done ahead changed the answer")
    return out


def slides(models: dict, states: dict, size: int, rounds: int) -> dict:
    """Medians of `slide` for each side, in turn."""
    sessions = {name: full_window(model, states[name], size) for name, model in models.items()}
    found: dict = {name: [] for name in models}
    for r in range(rounds):
        for name in list(sessions)[:: 1 if r % 2 == 0 else -1]:
            found[name].append(slide(sessions[name]))
    out = {}
    for name, each in found.items():
        middle = lambda way, key: statistics.median(r[way][key] for r in each)  # noqa: E731, B023
        out[name] = {
            "pause_ms": middle("plain", "pause_ms"), "tokens": each[0]["plain"]["pause_tokens"], "ahead_ms": middle("hidden", "ahead_ms"),
            "ahead_tokens": each[0]["hidden"]["ahead_tokens"], "pause_after_ahead_ms": middle("hidden", "pause_ms"),
            "tokens_after_ahead": each[0]["hidden"]["pause_tokens"],
        }  # fmt: skip
    return out


def measure(a, backend: str) -> dict:
    """Every figure of one backend."""
    models, threads = {}, a.threads
    for name in ("on", "off"):
        models[name], threads = opened(a.model, backend, a.threads, name == "on", a.folder)
        print(f"{backend}: {models[name].name} is open", file=sys.stderr, flush=True)
    on, off = models["on"], models["off"]
    ids = list(on.encode(long_text()))[: 2 * a.window + on.config.memory.slots]
    state = full_memory(on.backend, ids)
    check(on.backend, off.backend, state, ids, a.window)
    sides = {"on": (on.backend, state), "off": (off.backend, None)}
    m, places = on.config.memory, [int(p) for p in a.positions.split(",")]
    record: dict = {
        "backend": backend, "threads": threads, "model": on.name, "memory_layers": len(m.layers), "rows": m.slots, "chunk": m.chunk, "written": state.written,
        "window": a.window, "rounds": a.rounds, "command": command(), "machine": machine(), "decode": {},
    }  # fmt: skip
    for p in places:
        record["decode"][str(p)] = decode(sides, ids, p, a.window, a.steps, a.rounds)
        print(f"{backend}: decode at {p}: {record['decode'][str(p)]['ratio']:.3f}", file=sys.stderr, flush=True)
    record["fold"] = {"turn": a.turn, **fold(on.backend, state, ids, places[0], a.window, a.turn, a.rounds)}
    record["slide"] = slides(models, {"on": state, "off": None}, a.window, max(1, a.rounds // 2))
    return record


def rows(r: dict) -> list[list[str]]:
    """Lines of the table: what, with memory, without, ratio, aim."""
    head, out = f"{r['backend']}, {'its own' if not r['threads'] else r['threads']} thread(s)", []
    for place, d in r["decode"].items():
        on, off = (statistics.median(d[side]) for side in ("on", "off"))
        out.append([head, f"a token at {place}, ms", f"{on:.2f}", f"{off:.2f}", f"{d['ratio']:.3f}", _aim(d["ratio"], DECODE_AIM)])
    f = r["fold"]
    out.append([head, f"fold of a turn of {f['turn']}, ms; beside a token", f"{f['fold']:.2f}", "", f"{f['ratio']:.2f}", _aim(f["ratio"], FOLD_AIM)])
    on, off = r["slide"]["on"], r["slide"]["off"]
    for key, tokens, words in (
        ("pause_ms", "tokens", f"pause of a message at a full window of {r['window']}, ms (tokens run)"),
        ("ahead_ms", "ahead_tokens", "`ahead` between the turns, ms (tokens run)"),
        ("pause_after_ahead_ms", "tokens_after_ahead", "pause of the message after it, ms (tokens run)"),
    ):
        out.append([head, words, *(f"{s[key]:.0f} ({s[tokens]})" for s in (on, off)), f"{on[key] / off[key]:.3f}", ""])
    return out


def _aim(ratio: float, aim: float) -> str:
    return f"<= {aim:g} {'met' if ratio <= aim else 'missed'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-memory")
    parser.add_argument("--backends", default="torch,mlx,onnx")
    parser.add_argument("--threads", type=int, default=1, help="0: each library's own choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded in a round")
    parser.add_argument("--positions", default="256,1500", help="where decoding is timed")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--turn", type=int, default=60, help="tokens of the turn that is folded")
    parser.add_argument("--folder", type=Path, default=Path("build/memory_cost"), help="where the backbone for ONNX is made and kept")
    parser.add_argument("--add", action="store_true", help="keep what memory_cost.json in --out says of other backends and threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    a = parser.parse_args()
    file = a.out / "memory_cost.json"
    kept = json.loads(file.read_text())["results"] if a.add and file.is_file() else []
    from lm2.models.errors import LM2Error

    try:
        results = [measure(a, backend) for backend in a.backends.split(",")]
    except LM2Error as error:
        sys.exit(str(error))
    new = {(r["backend"], r["threads"]) for r in results}
    results = [r for r in kept if (r["backend"], r["threads"]) not in new] + results
    report = {
        "versions": versions("lm2", "torch", "mlx", "onnxruntime", "numpy"), "seed": 0,
        "aims": {"decode": DECODE_AIM, "fold": FOLD_AIM}, "results": results,
    }  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")
    for r in {r["command"]: r for r in results}.values():
        print(f"`{r['command']}` on {r['machine']}: medians of {r['rounds']} interleaved rounds")
    print(f"{report['versions']}; float32, seed 0\n")
    print(table(["backend", "what", "memory full", "no memory", "ratio", "aim"], [line for r in results for line in rows(r)]))
    met = all(d["ratio"] <= DECODE_AIM for r in results for d in r["decode"].values()) and all(r["fold"]["ratio"] <= FOLD_AIM for r in results)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
