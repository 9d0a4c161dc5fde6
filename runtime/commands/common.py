"""What several commands share: model and sampling options, loading with a progress bar, Ctrl-C that asks before it kills."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ...models.errors import LM2Error
from .plain import console, lively

if TYPE_CHECKING:
    from ..loading import Model
    from ..session.sampling import Sampling

MAX_TOKENS = 512


def model_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """--backend, --device, --dtype, --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 leaves it to the library."),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            help="Precision of the weights; the memory is always float32.",
        ),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N, gpu.", show_default=True),
        click.option("--backend", type=click.Choice(["auto", "torch", "mlx", "onnx"]), default="auto", show_default=True),
    ):
        f = option(f)
    return f


def window_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """--window, --no-memory, --verbose: how a session keeps its text."""
    for option in (
        click.option("--verbose", is_flag=True, help="Say on stderr when tokens go into the memory, and when the window slides."),
        click.option("--no-memory", is_flag=True, help="The backbone alone: what leaves the window is gone."),
        click.option(
            "--window", type=int, default=None, help="Tokens kept word for word; default: the model's (2048 where its positions allow)."
        ),
    ):
        f = option(f)
    return f


def sampling_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """--temp, --top-k, --top-p, --min-p, --repetition-penalty, --seed, --max-tokens, --stop; defaults are the model's own."""
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be given several times."),
        click.option("--max-tokens", type=click.IntRange(1), default=MAX_TOKENS, show_default=True, help="Longest answer."),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=None, help="Random seed; drawn and shown when not given."),
        click.option("--repetition-penalty", type=float, default=None, help="Above 1 discourages repeating recent tokens."),
        click.option("--min-p", type=float, default=None, help="Drop tokens below this share of the likeliest one."),
        click.option("--top-p", type=float, default=None, help="Keep the likeliest tokens up to this total probability."),
        click.option("--top-k", type=int, default=None, help="Keep the k likeliest tokens; 0 keeps all."),
        click.option("--temp", "temperature", type=float, default=None, help="Temperature; 0 always takes the likeliest token."),
    ):
        f = option(f)
    return f


def adjusted(sampling: "Sampling", **given: Any) -> "Sampling":
    """The model's sampling defaults with what was given on the command line. Raises PromptError naming a bad value."""
    from dataclasses import replace

    return replace(sampling, **{k: v for k, v in given.items() if v is not None})


def open_model(name: str | None, backend: str, device: str, dtype: str, threads: int, memory: bool = True) -> "Model":
    """Load a model, pulling it once if it is a catalogue name that is not here. Progress on stderr.

    Without a name: the default model; where that is not here and cannot be pulled, the small one that comes with the package, said in one line.
    """
    from ...models.checkpoints.fetch import Unreachable
    from ...models.home import shipped_model
    from ..loading import DEFAULT_MODEL, OFFLINE_MODEL, load
    from .progress_bar import drawn

    asked, waiting = name or DEFAULT_MODEL, lively()
    if waiting:
        click.echo(f"loading {asked} ...\r", nl=False, err=True)
    try:
        with drawn() as report:
            try:
                return load(asked, backend, device, dtype, threads, report, memory)
            except Unreachable as error:
                if name is not None or shipped_model(OFFLINE_MODEL) is None:
                    raise
                reason = " ".join(str(error).split())
        note(f"{asked} is not here and cannot be pulled ({reason}): this is {OFFLINE_MODEL}, which comes with lm2 and knows little")
        return load(OFFLINE_MODEL, backend, device, dtype, threads, memory=memory)
    finally:
        if waiting:
            click.echo("\r\033[K", nl=False, err=True)


def check_settings(stop: tuple[str, ...], **sampling: Any) -> None:
    """Refuse bad sampling settings and stop strings early, before a model is loaded. Raises PromptError naming them."""
    from ...models.text.streaming import StopStrings
    from ..session.sampling import Sampling

    adjusted(Sampling(), **sampling)
    StopStrings(stop)


def need_folder(path: Path) -> None:
    """Refuse early, before a model is loaded, a file in a folder that is not there. Raises WriteError."""
    from ...models.errors import WriteError

    folder = path.absolute().parent
    if not folder.is_dir():
        what = "is not a folder: choose another" if folder.exists() else "does not exist: create it first"
        raise WriteError(f"cannot write {path}: {folder} {what}")


def need_file(path: Path) -> None:
    """Refuse early, before a model is loaded, what a file cannot be written to: no folder, a device, a pipe, a folder. Raises WriteError."""
    from ...models.atomic import check_file

    need_folder(path)
    check_file(path)


def stdin_bytes() -> BinaryIO:
    """Standard input as bytes. Raises PromptError where the caller closed it."""
    from ...models.errors import PromptError

    if sys.stdin is None:
        raise PromptError("stdin is closed: give the text on stdin")
    return sys.stdin.buffer


class Ended(SystemExit):
    """SIGTERM or SIGHUP (the terminal was closed) ended the command, after what was under way was kept. Exit code 128 + the signal."""


ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def soft_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, a first Ctrl-C only sets the flag that the yielded function reads; a second one interrupts at once.

    SIGTERM and SIGHUP set it too, however often they come; when the block has ended, having kept what it made, Ended is raised.
    """
    pressed, ending = False, 0

    def handler(number: int, frame: Any) -> None:
        nonlocal pressed, ending
        if number in ENDING:
            ending = ending or number
        elif pressed:
            raise KeyboardInterrupt
        pressed = True

    ignored = [number for number in ENDING if signal.getsignal(number) == signal.SIG_IGN]  # nohup
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, *ENDING) if number not in ignored}
    try:
        yield lambda: pressed
    except LM2Error as error:
        if not ending:
            raise
        with suppress(OSError):
            click.echo(f"lm2: {' '.join(str(error).split())}", err=True)
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        if ending:
            raise Ended(128 + ending)


CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd") | {ord("\r"): ""}


def visible(text: str) -> str:
    """Text that a model or a file made up, for a terminal: control characters, which could move the cursor or worse, as U+FFFD."""
    return text.translate(CONTROLS)


def write_out(text: str) -> None:
    """Write to stdout at once, replacing what its encoding does not have and, in a terminal, what is not for the eye."""
    if sys.stdout.isatty():
        text = visible(text)
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def note(line: str) -> None:
    """A line on stderr, dim in a terminal, above a progress bar if one is drawn (click.echo would write into it)."""
    print(click.style(line, dim=True) if lively() else line, file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    """Bytes for people: `4.7 MB` (10^6 bytes), `16 KB`, `1.3 GB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"


@contextmanager
def reading_bar(total: int, title: str, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the bytes of a file, on stderr when it is a terminal. The yielded function takes (bytes, tokens)."""
    if not (show and lively()):
        yield lambda done, tokens: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, tokens=0)
        yield lambda done, tokens: progress.update(task, completed=done, tokens=tokens)
