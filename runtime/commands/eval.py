"""`lm2 eval`: what a model remembers, and what it answers without its memory, on the same samples in the same run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import model_options, note, open_model, soft_interrupt
from .eval_end import Done, ready, tell

if TYPE_CHECKING:
    from ..evaluation.plans import Asked, Plan
    from ..evaluation.store import Store
    from ..loading import Model

TASKS = ("recall", "babilong", "perplexity", "mmlu", "harm")
LENGTHS, DISTANCES, SAMPLES, ANSWER_TOKENS, SEED = "0k,1k,2k,4k", "1,2,4,8", 100, 12, 0
TEXT_LENGTH, TEXTS = "4k", 16
HIDDEN, NATURAL_TOKENS, NATURAL = "0,500,1500,4000,16000", 24, ("natural",)
ORDINARY, ORDINARY_TOKENS = 200, 64


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--task", required=True, type=click.Choice(TASKS), help="What to measure; recall and harm need no data.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder with the task's files (docs/evaluation.md)."
)
@click.option(
    "--lengths", default=None, metavar="L,L", help=f"babilong: nominal lengths [{LENGTHS}]; perplexity: text lengths [{TEXT_LENGTH}]."
)
@click.option(
    "--distances", default=None, metavar="D,D",
    help=f"recall: chunks between a fact and its question [{DISTANCES}]; natural: tokens since it was in the window, 0 at once [{HIDDEN}].",
)  # fmt: skip
@click.option("--only", default=None, metavar="A,B", help="recall: story, chat [story], or natural; babilong: qa1,...; mmlu: subjects [all there are].")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=None,
    help=f"Samples of each kind at each length or distance [{SAMPLES}; perplexity {TEXTS}; harm {ORDINARY}].",
)
@click.option(
    "--part", type=click.Choice(["auto", "validation", "test", "train"]), default="auto",
    help="Which samples: those held out from training, test files, or training's own. auto: test where there is such a part, else validation.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=SEED, show_default=True, help="Decides every sample.")
@click.option("--system", default=None, help="System prompt.")
@click.option("--chunk", type=click.IntRange(1), default=None, metavar="T", help="Tokens of a chunk of text [the model's].")
@click.option("--window", type=click.IntRange(1), default=None, metavar="W", help="natural, harm: tokens kept word for word [the model's].")
@click.option("--bare", type=click.Path(path_type=Path, file_okay=False), default=None, metavar="EXPORT", help="harm of an ONNX export: its export with --no-memory.")
@click.option("--answer-tokens", type=click.IntRange(1), default=None, help=f"Longest answer [{ANSWER_TOKENS}; natural {NATURAL_TOKENS}; harm {ORDINARY_TOKENS}].")
@click.option(
    "--counter",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="babilong: a tokenizer.json that counts lengths, such as GPT-2's.",
)
@click.option("--batch", type=click.IntRange(1), default=None, help="Samples computed at once [by chunk and device].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/evaluation.md).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for answers, result.json and a PNG; a run goes on where it stopped.",
)
@model_options
def command(
    model: str, task: str, data: Path | None, lengths: str | None, distances: str | None, only: str | None, samples: int | None, part: str, seed: int,
    system: str | None, chunk: int | None, window: int | None, bare: Path | None, answer_tokens: int | None, counter: Path | None, batch: int | None, as_json: bool, out: Path | None,
    backend: str, device: str, dtype: str, threads: int,
) -> None:  # fmt: skip
    """Measure what MODEL, a model folder or a name such as lm2-tiny, remembers.

    Every figure stands beside that of the same model without memory, and beside what always giving the commonest answer would score.
    """
    from ..evaluation.plans import Asked, plan
    from ..evaluation.report import header
    from ..evaluation.store import Store
    from ..evaluation.streams import Stopped, streams_at_once
    from ..evaluation.swift import reader_of

    if task in ("harm", "recall"):
        _baseline(model, task)
    if bare is not None and task != "harm":
        raise click.UsageError(f"--bare {bare} is for --task harm")
    if task == "harm":
        from .eval_harm import harm

        loaded = open_model(model, backend, device, dtype, threads)
        alone = open_model(model if bare is None else str(bare), backend, device, dtype, threads, memory=False)
        harm(loaded, alone, samples or ORDINARY, seed, window, answer_tokens or ORDINARY_TOKENS, out, as_json)
        return
    if task != "recall" and data is None:
        raise click.UsageError(f"--task {task} needs --data DIR (docs/evaluation.md says what is in it)")
    if task == "recall" and "natural" in _words(only or ""):
        if _words(only or "") != NATURAL:
            raise click.UsageError(f"--only {only}: natural is measured alone, leave the others out")
        from ..evaluation.natural import part_of

        written = part_of(part)
        loaded = open_model(model, backend, device, dtype, threads)
        _natural(loaded, data, written, _distances(distances or HIDDEN, 0), samples or SAMPLES, seed, window, answer_tokens or NATURAL_TOKENS, out, as_json)
        return
    spans = _words(lengths or (TEXT_LENGTH if task == "perplexity" else LENGTHS))
    asked = Asked(task, data, spans, _distances(distances or DISTANCES, 1), _words(only or ""), part, seed, system, chunk, counter)
    count = samples or (TEXTS if task == "perplexity" else SAMPLES)
    out = ready(out, f"{task}.png")
    beside = _baseline(model, task)
    loaded = open_model(model, backend, device, dtype, threads) if beside is None else beside.open_baseline(Path(model), backend, device, dtype, threads)
    with soft_interrupt() as interrupted:

        def check() -> None:
            if interrupted():
                raise Stopped

        reader = (reader_of if beside is None else beside.reader)(loaded.backend, loaded.eos, answer_tokens or ANSWER_TOKENS, check)
        planned = plan(asked, loaded, reader, batch or streams_at_once(loaded.backend))
        if beside is not None:
            planned.words["baseline"] = beside.read_baseline(Path(model)).words
        store = Store(out, planned.settings) if out else None
        done = (_scored if planned.scorer else _answered)(loaded, planned, count, store, asked)
    tell(done, header(loaded, planned.words), out, f"{task}.png", as_json)


def _baseline(model: str, task: str) -> Any:
    """The module that runs a baseline, where MODEL is one; else None. Raises EvaluationError for a task that baselines are not measured on."""
    from ...models.baselines.config import is_baseline

    if not Path(model).is_dir() or not is_baseline(Path(model)):
        return None
    from ..evaluation import baseline

    baseline.check_task(Path(model), task)
    return baseline


def _answered(model: "Model", planned: "Plan", count: int, store: "Store | None", asked: "Asked") -> Done:
    """Run the cells of a task that is answered."""
    from ..evaluation.figure import heat_map
    from ..evaluation.report import document, table
    from ..evaluation.run import run
    from .eval_progress import watching

    assert planned.examiner is not None
    with watching(asked.task, len(planned.cells)) as watch:
        results = run(planned.examiner, planned.cells, count, store, watch)
    whole = len(results) == len(planned.cells)
    report = document(model, asked.task, results, planned.settings | {"samples": count}, whole)
    return Done(report, table(asked.task, results), lambda path: heat_map(results, f"{model.name}: {asked.task}", path))


def _scored(model: "Model", planned: "Plan", count: int, store: "Store | None", asked: "Asked") -> Done:
    """Run the cells of perplexity."""
    from ..evaluation.figure import curves
    from ..evaluation.perplexity import measure
    from ..evaluation.report import envelope, perplexity_cell, perplexity_table
    from .eval_progress import counting

    assert planned.scorer is not None
    with counting(asked.task, count) as watch:
        found = measure(planned.scorer, planned.cells, count, asked.seed, store, watch)
    whole = len(found) == len(planned.cells) and all(f.whole for f in found)
    report = envelope(model, asked.task, planned.settings | {"samples": count}, whole, [perplexity_cell(f) for f in found])
    return Done(report, perplexity_table(found), lambda path: curves(found, f"{model.name}: perplexity", path))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _distances(text: str, least: int) -> list[int]:
    found = _words(text)
    if not found or not all(word.isascii() and word.isdigit() and int(word) >= least for word in found):
        raise click.UsageError(f"--distances {text!r} must be whole numbers from {least} on, such as {DISTANCES if least else HIDDEN}")
    return [int(word) for word in found]


def _natural(
    model: "Model", data: Path | None, part: str, distances: list[int], count: int, seed: int, window: int | None, longest: int, out: Path | None, as_json: bool
) -> None:
    """Conversations in people's own words, those written by hand of one part, asked in four ways. With `out` a run goes on where it stopped."""
    from ..evaluation import natural, natural_report
    from ..evaluation.report import header
    from ..evaluation.store import Store
    from ..evaluation.streams import Stopped

    given = natural.from_dialogues(data) if data is not None else ()
    distances = sorted(set(distances))
    about = model.backend.describe()
    settings = {
        "task": "recall", "only": "natural", "model": model.name, "fingerprint": model.fingerprint, "backend": about.backend, "dtype": about.dtype,
        "seed": seed, "part": part, "window": window or model.window, "distances": distances, "answer_tokens": longest, "dialogues": len(given),
    }  # fmt: skip
    out = ready(out, "recall.png")
    store = Store(out, settings) if out else None
    rows: list[natural.Row] = store.load_rows("natural", natural.Row) if store else []
    whole = True
    with soft_interrupt() as interrupted:

        def check() -> None:
            if interrupted():
                raise Stopped

        talker = natural.Talker(model, seed, longest, window, check, part)
        try:
            for batch in natural.measure(talker, distances, count, given, rows, lambda new: None):
                rows += batch
                if store:
                    store.save("natural", rows)
                note(f"natural: {len({(r.number, r.question) for r in rows})} of {count} questions, {_so_far(rows, distances)}")
        except (Stopped, KeyboardInterrupt):
            whole = False
    report = natural_report.document(model, rows, distances, settings | {"samples": count}, whole)
    words = {
        "window": f"{window or model.window} tokens; seed {seed}; greedy answers of at most {longest} tokens",
        "talk": f"held-out kinds and conversations of the package, {part} part" + (f", {len(given)} held-out dialogues of {data}" if data else ""),
    }
    title = f"{model.name}: recall, natural"
    done = Done(report, natural_report.table(rows, distances), lambda path: natural_report.draw(rows, distances, title, path))
    tell(done, header(model, words)[:-1], out, "recall.png", as_json)


def _so_far(rows: "list[Any]", distances: list[int]) -> str:
    from ..evaluation.natural_report import label, shares

    return ", ".join(f"{label(at)} {100 * f[0] / f[1]:.0f}%" for at in distances if (f := shares(rows, at)[0]) is not None)
