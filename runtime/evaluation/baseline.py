"""Baselines in an evaluation: opening one, and reading a sample's chunks as its segments. Nothing else runs one: no sessions, no export, no server.

Text is read in the very chunks that LM2 reads, several in a segment; the question stands behind the last ones. RMT carries its memory from segment to segment; a
Llama without memory sees the last chunks that its window holds. The control is the question alone. Axes: b streams, m memory tokens, t positions, d hidden.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from ...models.baselines.config import read_baseline
from ...models.errors import BackendError
from ...models.layout import GENERATION
from ...models.text.template import ChatTemplate
from ...models.text.tokenizer import Tokenizer
from ..backend import Backend, Description
from ..loading import Model, read_generation
from ..session.sampling import Sampling
from .store import EvaluationError
from .streams import Ids

if TYPE_CHECKING:
    from ...models.baselines.model import Baseline

AT_ONCE = 32  # streams


class State(NamedTuple):
    """What was read: the memory (m, d), and the text of the segment that a question ends."""

    memory: Any
    text: Ids


class Computes:
    """What an evaluation asks of a backend beside computing: it is no Backend, so that nothing else can run what it holds."""

    def __init__(self, model: "Baseline"):
        self.model, self.config, self.longest = model, model.config, model.config.memory.chunk

    def describe(self, window: int | None = None) -> Description:
        import torch

        state = 4 * self.model.baseline.tokens * self.config.hidden_size
        return Description("torch", str(self.model.device), "float32", "none", {"torch": torch.__version__}, state, 0)


def open_baseline(path: Path, backend: str = "auto", device: str = "auto", dtype: str = "auto", threads: int = 0) -> Model:
    """A baseline's folder as far as an evaluation of babilong looks at a model. Raises BackendError, ModelFileError, ConfigError or TokenizerError."""
    if backend not in ("auto", "torch") or dtype not in ("auto", "float32"):
        raise BackendError(f"{path} is a baseline ({read_baseline(path).kind}), computed by torch in float32 alone: leave --backend and --dtype out")
    import torch

    from ...models.baselines.folder import load_baseline
    from ..backends.torch_backend import pick_device

    if threads:
        torch.set_num_threads(threads)
    model, fingerprint = load_baseline(path, pick_device(device))
    tokenizer = Tokenizer.load(path)
    _, ends = read_generation(path / GENERATION, model.config.vocab_size)
    eos = frozenset(model.config.eos_token_id) | ends | tokenizer.ends()
    opened = cast(Backend, Computes(model))
    return Model(path, model.config, fingerprint, opened, tokenizer, ChatTemplate.load(path, tokenizer), Sampling(), eos)


def reader(backend: Backend, ends: Iterable[int], longest: int, check: Callable[[], None]) -> "SegmentReader":
    """What reads streams with an opened baseline."""
    return SegmentReader(cast(Computes, backend).model, ends, longest, check)


def check_task(path: Path, task: str) -> None:
    """Raise EvaluationError for a task that baselines are not measured on."""
    if task != "babilong":
        raise EvaluationError(f"{path} is a baseline ({read_baseline(path).kind}): it is measured on --task babilong alone, not {task}")


class SegmentReader:
    """Reads streams and answers questions with a baseline, as streams.Reader does with a backend. check() is called between steps and may raise Stopped."""

    def __init__(self, model: "Baseline", ends: Iterable[int], longest: int, check: Callable[[], None] = lambda: None):
        self.model, self.ends, self.longest, self.check = model, frozenset(ends), longest, check
        self.initial = State(model.begin(1)[0].detach(), ())

    def read(self, streams: Sequence[tuple[Ids, ...]], fed: Callable[[int], None] = lambda tokens: None) -> list[State]:
        """Read every chunk of each stream but those of its last segment, which the question will end."""
        import torch

        if self.model.baseline.kind == "none":
            return [State(self.initial.memory, self._window(chunks)) for chunks in streams]
        parts = [grouped(chunks, self.model.baseline.segment) for chunks in streams]
        memory = self.model.begin(len(streams)).detach().clone()  # (b, m, d)
        for step in range(max((len(p) for p in parts), default=1) - 1):
            self.check()
            live = [i for i, p in enumerate(parts) if step < len(p) - 1]
            text, lengths = self._padded([parts[i][step] for i in live])
            with torch.inference_mode():
                after, _ = self.model.segment(memory[live], text, lengths)
            memory[live] = after.clone()
            fed(int(lengths.sum()))
        return [State(memory[i], p[-1] if p else ()) for i, p in enumerate(parts)]

    def ask(self, states: Sequence[State], questions: Sequence[Ids], batch: int = AT_ONCE) -> list[Ids]:
        """The greedy answer to each question, which stands behind the state's text."""
        out: list[Ids] = []
        for begin in range(0, len(questions), batch):
            out += self._answers(states[begin : begin + batch], questions[begin : begin + batch])
        return out

    def _answers(self, states: Sequence[State], questions: Sequence[Ids]) -> list[Ids]:
        import torch

        text, lengths = self._padded([s.text for s in states])
        memory = torch.stack([s.memory for s in states])  # (b, m, d)
        answers: list[list[int]] = [[] for _ in states]
        live = set(range(len(states)))
        while live:
            self.check()
            said = [(*q, *a) for q, a in zip(questions, answers, strict=True)]
            asked, sizes = self._padded(said)
            with torch.inference_mode():
                _, h = self.model.segment(memory, text, lengths, asked[:, None], lengths[:, None])
                assert h is not None
                best = self.model.lm_head(h[torch.arange(len(said)), 0, sizes - 1]).argmax(-1).tolist()  # (b,)
            for i in list(live):
                if best[i] in self.ends:
                    live.discard(i)
                    continue
                answers[i].append(best[i])
                if len(answers[i]) >= self.longest or len(said[i]) + 1 >= self.model.config.memory.chunk:
                    live.discard(i)
        return [tuple(a) for a in answers]

    def _window(self, chunks: Sequence[Ids]) -> Ids:
        """The last whole chunks that the window holds."""
        kept: list[Ids] = []
        room = self.model.baseline.segment
        for ids in reversed(chunks):
            if len(ids) > room:
                break
            kept.insert(0, ids)
            room -= len(ids)
        return tuple(i for ids in kept for i in ids)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Ids (b, t) and lengths (b,)."""
        import torch

        lengths = np.array([len(ids) for ids in rows], np.int64)
        out = np.zeros((len(rows), int(lengths.max(initial=0))), np.int64)
        for i, ids in enumerate(rows):
            out[i, : len(ids)] = ids
        return torch.from_numpy(out).to(self.model.device), torch.from_numpy(lengths).to(self.model.device)


def grouped(chunks: Sequence[Ids], size: int) -> list[Ids]:
    """Chunks as segments: as many whole ones in each as fit into `size` tokens, as in training."""
    out: list[list[int]] = []
    for ids in chunks:
        if not out or len(out[-1]) + len(ids) > size:
            out.append([])
        out[-1] += ids
    return [tuple(ids) for ids in out]
