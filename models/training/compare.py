"""`lm2 train tiny --task babilong --memory lm2|rmt|none`: a model for the comparison put together, and how it is written.

Knows which models are compared and that they get the same: tokenizer, data, plan, width, depth and, to the nearest column of the MLP, parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import new_folder
from ..baselines.config import BaselineConfig, baseline_config, parameters
from ..baselines.folder import write_baseline
from ..baselines.model import Baseline
from ..layout import TEMPLATE, TOKENIZER
from ..tasks import babi
from . import jobs, sources, start, vocabulary
from .answer_task import MemoryAnswers, SegmentAnswers
from .asked import OWN, AskedStreams
from .leftout import LeftOut
from .origin import origin
from .plan import Plan, TrainError
from .run import Task
from .speech import END

MEMORIES = ("lm2", "rmt", "none")


def job(plan: Plan, memory: str, only: Sequence[str], data: Path | None, out: Path, device: str, say: Callable[[str], None]) -> jobs.Job:
    """A model of lm2-babi's shape that learns from answers alone. only: bAbI's tasks; empty: all of qa1 to qa10 that the data has.

    Raises TrainError for a task or data that is not there.
    """
    told, book = _read(data, only, say)
    tokenizer = jobs.own_tokenizer(data, out / TOKENIZER)
    shape = start.babi_config(tokenizer.vocab_size, tokenizer.id(END) or 0)
    streams = AskedStreams(tokenizer.encode, shape.memory.chunk, told, book, tuple(told))
    texts = {TOKENIZER: tokenizer.data, TEMPLATE: vocabulary.TEMPLATE.encode()}
    read = [{task: [str(line) for story in found for line in story.lines] for task, found in told.items()}, book]
    if memory == "lm2":
        model = start.fresh(shape, plan.seed).to(device)
        task: Task = MemoryAnswers(model, streams)

        def write(folder: Path, record: Mapping[str, Any]) -> None:
            jobs.write_model(model, folder, texts, record)

        say(f"{parameters(shape):,} parameters; LM2 from answers alone")
        return jobs.Job(task, write, "model", origin(model.config, None, out, read))
    config = baseline_config(memory, shape)
    baseline = fresh_baseline(config, plan.seed).to(device)
    say(f"{sum(p.numel() for p in baseline.parameters()):,} parameters, LM2 has {parameters(shape):,}; {config.words}")

    def write_it(folder: Path, record: Mapping[str, Any]) -> None:
        with new_folder(folder) as new:
            write_baseline(baseline, new)
            jobs.write_texts(new, texts, config.llama.eos_token_id, record)

    began = origin(config.llama, None, out, read) | {"memory": config.words}
    return jobs.Job(SegmentAnswers(baseline, streams), write_it, "model", began)


def fresh_baseline(config: BaselineConfig, seed: int) -> Baseline:
    """A baseline from scratch, float32, trainable: its Llama as lm2-babi's begins, memory tokens as embeddings do. A function of config and seed."""
    model = Baseline(config)
    model.load_state_dict(start.fresh(config.llama, seed).state_dict(), strict=False)
    if model.memory_tokens is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        model.memory_tokens.data.copy_(start.EMBEDDED * torch.randn(model.memory_tokens.shape, generator=generator))
    return model.train().requires_grad_(True)


def _read(data: Path | None, only: Sequence[str], say: Callable[[str], None]) -> tuple[dict[str, list[babi.Story]], list[str]]:
    """Training stories by task, and sentences of novels."""
    where = None if data is None else data / "babi"
    if data is None or where is None or not where.is_dir():
        raise TrainError(f"{data or 'no --data'}: comparing memories needs bAbI's files in DATA/babi, and novels in DATA/background")
    files = babi.find(where)
    for task in only:
        if task not in files:
            raise TrainError(f"--only {task}: {where} has {', '.join(files)}")
    told = {task: list(babi.split(babi.read(file), "train")) for task, file in files.items() if task in (only or babi.TASKS)}
    for task, found in told.items():
        if task not in OWN and not found:
            raise TrainError(f"{files[task]} has no story in its training part: give a larger file")
    left = LeftOut()
    book = sources.sentences(sources.books(data, left=left), left)
    if not book:
        raise TrainError(f"{data} has no sentence of a novel to train on: put books in DATA/background")
    say(f"{', '.join(told)}; {len(book):,} sentences of books" + (f"; left out: {left}" if left else ""))
    return told, book
