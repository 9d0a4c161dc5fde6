"""`lm2 eval`: what a model remembers, and what it answers without its memory, on the same samples in the same run."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import model_options, need_folder, note, open_model, soft_interrupt
from .eval_progress import watching

if TYPE_CHECKING:
    from ..evaluation.cells import Cell
    from ..evaluation.run import Answering
    from ..evaluation.streams import Reader
    from ..loading import Model

TASKS = ("recall", "babilong", "perplexity", "mmlu")
LENGTHS, DISTANCES, SAMPLES, ANSWER_TOKENS, SEED = "0k,1k,2k,4k", "1,2,4,8", 100, 12, 0
TEXT_LENGTH = "4k"


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--task", required=True, type=click.Choice(TASKS), help="What to measure; recall needs no data.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=None, help="Folder with the task's files (docs/evaluation.md)."
)
@click.option(
    "--lengths", default=None, metavar="L,L", help=f"babilong: nominal lengths [{LENGTHS}]; perplexity: text lengths [{TEXT_LENGTH}]."
)
@click.option("--distances", default=DISTANCES, show_default=True, metavar="D,D", help="recall: chunks between a fact and its question.")
@click.option("--only", default=None, metavar="A,B", help="recall: story, chat [story]; babilong: qa1,...; mmlu: subjects [all there are].")
@click.option("--samples", type=click.IntRange(1), default=SAMPLES, show_default=True, help="Samples of each task and length or distance.")
@click.option(
    "--part", type=click.Choice(["auto", "validation", "test", "train"]), default="auto",
    help="Which samples: those held out from training, test files, or training's own. auto: test files where there are some, else validation.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=SEED, show_default=True, help="Decides every sample.")
@click.option("--system", default=None, help="System prompt.")
@click.option("--chunk", type=click.IntRange(1), default=None, metavar="T", help="Tokens of a chunk of text [the model's].")
@click.option("--answer-tokens", type=click.IntRange(1), default=ANSWER_TOKENS, show_default=True, help="Longest answer.")
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
    model: str, task: str, data: Path | None, lengths: str | None, distances: str, only: str | None, samples: int, part: str, seed: int,
    system: str | None, chunk: int | None, answer_tokens: int, counter: Path | None, batch: int | None, as_json: bool, out: Path | None,
    backend: str, device: str, dtype: str, threads: int,
) -> None:  # fmt: skip
    """Measure what MODEL, a model folder or a name such as lm2-tiny, remembers.

    Every figure stands beside that of the same model without memory, and beside what always giving the commonest answer would score.
    """
    from ..evaluation.report import document, header, table
    from ..evaluation.run import run
    from ..evaluation.store import Store, write_json
    from ..evaluation.streams import Reader, Stopped, streams_at_once

    if task != "recall" and data is None:
        raise click.UsageError(f"--task {task} needs --data DIR (docs/evaluation.md says what is in it)")
    names = tuple(part_ for part_ in (only or "").split(",") if part_)
    spans = _distances(distances)
    if out is not None:
        need_folder(out)
    loaded = open_model(model, backend, device, dtype, threads)
    with soft_interrupt() as interrupted:

        def check() -> None:
            if interrupted():
                raise Stopped

        reader = Reader(loaded.backend, loaded.eos, answer_tokens, check)
        at_once = batch or streams_at_once(loaded.backend)
        if task == "perplexity":
            raise click.UsageError("--task perplexity: not yet")
        plan = _plan(task, loaded, reader, at_once, data, lengths or LENGTHS, spans, names, part, seed, system, chunk, counter)
        settings = _settings(loaded, task, seed, answer_tokens, plan.settings)
        store = Store(out, settings) if out else None
        with watching(task, len(plan.cells)) as watch:
            results = run(plan.examiner, plan.cells, samples, store, watch)
        stopped = interrupted() or len(results) < len(plan.cells) or not all(r.whole for r in results)
    report = document(loaded, task, results, settings | {"samples": samples}, not stopped)
    if out is not None:
        write_json(out / "result.json", report)
        if results:
            _picture(lambda path: _heat_map(results, f"{loaded.name}: {task}", path), out / f"{task}.png")
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console = _console()
        console.print("\n".join(header(loaded, plan.words)), markup=False)
        console.print()
        console.print(table(task, results))
    if stopped:
        if out is not None:
            note(f"stopped; the same command goes on from what is in {out}")
        raise click.Abort


class _Plan:
    """Cells, who answers them, and what the report says of them."""

    def __init__(self, cells: "list[Cell]", examiner: "Answering", settings: dict[str, Any], words: dict[str, Any]):
        self.cells, self.examiner, self.settings, self.words = cells, examiner, settings, words


def _plan(
    task: str, model: "Model", reader: "Reader", batch: int, data: Path | None, lengths: str, distances: list[int], only: tuple[str, ...],
    part: str, seed: int, system: str | None, chunk: int | None, counter: Path | None,
) -> _Plan:  # fmt: skip
    """What to ask for a task. Raises LM2Errors naming what is missing."""
    from ..evaluation import sources
    from ..evaluation.cells import Examiner
    from ..evaluation.render import Renderer

    renderer = Renderer(model, system, chunk, reader.longest)
    examiner = Examiner(model, renderer, reader, batch)
    settings = {"system": system, "chunk": renderer.size}
    if task == "recall":
        cells = sources.recall_cells(only or ("story",), distances, part, seed, renderer)
        part = "validation" if part == "auto" else part
        words = {"samples": f"drawn, {part} part, seed {seed}; greedy answers of at most {reader.longest} tokens"}
        return _Plan(cells, examiner, settings | {"part": part}, words)
    assert data is not None
    facts = sources.Facts(data, part, only)
    count_tokens, counted = sources.counter(counter)
    wanted = [length for length in lengths.split(",") if length]
    from ...models.tasks.babilong import parse_length

    needed = any(parse_length(length) for length in wanted)
    library = sources.Library(data, facts.part) if needed else None
    books = library.books(count_tokens) if library else ()
    cells = sources.babilong_cells(facts, books, wanted, seed, renderer, count_tokens)
    files = [*facts.files.values(), *(library.files if library else ())]
    words = {
        "facts": f"{facts.part} part, {sum(map(len, facts.stories.values()))} stories; seed {seed}; whole words are scored",
        "books": ", ".join(book.name for book in books) or "none",
        "lengths": f"counted with {counted}",
    }
    return _Plan(cells, examiner, settings | {"part": facts.part, "counter": counted, "data": sources.digest(files)}, words)


def _settings(model: "Model", task: str, seed: int, answer_tokens: int, more: dict[str, Any]) -> dict[str, Any]:
    about = model.backend.describe()
    return {
        "task": task, "model": model.name, "fingerprint": model.fingerprint, "backend": about.backend, "device": about.device,
        "dtype": about.dtype, "quantization": about.quantization, "seed": seed, "answer_tokens": answer_tokens, **more,
    }  # fmt: skip


def _distances(text: str) -> list[int]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in found):
        raise click.UsageError(f"--distances {text!r} must be whole numbers from 1 on, such as {DISTANCES}")
    return [int(word) for word in found]


def _heat_map(results: Any, title: str, path: Path) -> None:
    from ..evaluation.figure import heat_map

    heat_map(results, title, path)


def _picture(draw: Any, path: Path) -> None:
    """Draw a figure, or say in one line why there is none."""
    from ...models.errors import BackendError

    try:
        draw(path)
    except BackendError as error:
        note(str(error))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
