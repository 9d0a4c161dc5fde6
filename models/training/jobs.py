"""What `lm2 train` can do: a task, its model and its data put together, and the result written as a model folder or an adapter.

Knows the recipes (their plans are the defaults of the shipped models); the loop is run.py's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import __version__
from ..atomic import new_folder, write_file
from ..checkpoints.adapter import folder_key, open_adapter, save_adapter
from ..checkpoints.convert import SOURCE
from ..checkpoints.license import license_files
from ..checkpoints.warmstart import default_layers
from ..config import LM2Config
from ..layout import GENERATION, TEMPLATE, TEXT_FILES, TOKENIZER, ModelFolder
from ..lm2 import LM2
from ..text.template import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..weights import layers_in_half, load_model, none_frozen, save_folder, slots_of
from . import facts, people, sources, start, together, vocabulary
from .fact_task import FactTask
from .find_task import FindTask
from .leftout import LeftOut
from .natural_task import NaturalTask
from .origin import origin
from .plan import Plan, TrainError, stages
from .run import Task
from .speech import ASSISTANT, END, USER
from .stories import Stories
from .story_task import StoryTask
from .text_task import TextTask
from .turns import chat_turns

STORY_WEIGHTS = {
    "recall": {"qa1": 0.5, "qa2": 0.15, "qa3": 0.08, "qa4": 0.1, "qa5": 0.17},
    "distance": {"qa1": 0.9, "qa4": 0.05, "qa5": 0.05},
}
PLANS = {
    "recall": Plan("recall", 4000, 1.5e-3, 0, stages("0.05:1x24,0.15:1-2x16,0.4:1-4x10,0.75:1-8x6,1:1-16x4"), flat=0.3, quiet=0.1),
    "distance": Plan("distance", 1200, 8e-4, 0, stages("0.35:1-8x8,0.7:2-16x6,1:1-32x6"), warmup=20, flat=0.4, quiet=0.1),
    "babilong": Plan(
        "babilong", 12000, 1.5e-3, 0, stages("0.06:1-2x48,0.17:1-4x24!0.1,0.42:2-8x14!0.3,1:5-16x8!0.45"), warmup=50, flat=0.45, quiet=0.1
    ),
    "chat": Plan("chat", 420, 6e-4, 0, stages("1:1x1"), warmup=15, flat=0.35, decay=0.01, quiet=0.3),
    "find": Plan("find", 1500, 2e-3, 0, stages("1:1x1"), warmup=20, flat=0.0, decay=0.01, quiet=0.0),
    "seek": Plan("seek", 1500, 2e-3, 0, stages("1:1x1"), warmup=1, flat=0.0, quiet=0.0),
    "retell": Plan("retell", 600, 2e-2, 0, stages("1:1x8"), warmup=20, flat=0.0, quiet=0.0),
    "read": Plan("read", 480, 1.5e-4, 0, stages("1:1x48"), warmup=50, flat=0.0, decay=0.01, quiet=0.0),
    "text": Plan("text", 2000, 3e-4, 0, stages("0.3:1-2x4,1:1-4x4"), warmup=50, decay=0.01, quiet=0.0),
}
WINDOW = 2048  # tokens that a chat with a memory of --task chat keeps word for word
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A task ready to run, and how to write what it made: `write(folder, record)`, record being how it was trained. origin: what a run of it
    begins from."""

    task: Task
    write: Callable[[Path, Mapping[str, Any]], None]
    result: str
    origin: Mapping[str, str]


def _silent(text: str) -> None: ...


def tiny(
    plan: Plan, data: Path | None, out: Path, device: str, recompute: bool, begun: ModelFolder | None = None, say: Say = _silent
) -> Job:
    """lm2-tiny from nothing: its tokenizer (kept in `out` once trained), its weights, its stories; or from `begun`, at greater distances."""
    model, tokenizer = _small(plan, data, out, device, begun, start.tiny_config)
    stories = _stories(tokenizer, model.config, data, plan.task, say)
    stories.far = begun is not None
    task = StoryTask(model, stories, STORY_WEIGHTS[plan.task], plan.seed, recompute=recompute, bound=begun is not None)

    def write(folder: Path, record: Mapping[str, Any]) -> None:
        write_model(model, folder, {TOKENIZER: tokenizer.data, TEMPLATE: vocabulary.TEMPLATE.encode()}, record)

    return Job(task, write, "model", origin(model.config, begun, out, [stories.fixed, stories.book]))


def babilong(plan: Plan, data: Path | None, out: Path, device: str, begun: ModelFolder | None = None, say: Say = _silent) -> Job:
    """lm2-babi, for BABILong's tasks 1 to 5: from nothing, as `tiny` does it, or on from `begun`."""
    model, tokenizer = _small(plan, data, out, device, begun, start.babi_config)
    memory = model.config.memory
    if (memory.cell, memory.init) != ("gated", "zeros"):
        raise TrainError(
            f"--task babilong trains cell gated with init zeros, this model has {memory.cell} with {memory.init}: begin from tiny"
        )
    fixed, book = _read(data, tuple(facts.WEIGHTS), True, say)
    streams = facts.FactStreams(tokenizer.encode, model.config.memory.chunk, fixed, book)

    def write(folder: Path, record: Mapping[str, Any]) -> None:
        write_model(model, folder, {TOKENIZER: tokenizer.data, TEMPLATE: vocabulary.TEMPLATE.encode()}, record)

    return Job(FactTask(model, streams, plan.seed), write, "model", origin(model.config, begun, out, [fixed, book]))


def _small(
    plan: Plan, data: Path | None, out: Path, device: str, begun: ModelFolder | None, shape: Callable[[int, int], LM2Config]
) -> tuple[LM2, Tokenizer]:
    """A small model with a tokenizer of its own, from a seed or from a folder."""
    file = out / TOKENIZER if begun is None else begun.path / TOKENIZER
    remedy = "remove it, or give another --out" if begun is None else "give lm2-tiny, lm2-babi or a model made from them"
    tokenizer = own_tokenizer(data, file, remedy)
    if begun is not None:
        return load_model(begun, device).train().requires_grad_(True), tokenizer
    return start.fresh(shape(tokenizer.vocab_size, tokenizer.id(END) or 0), plan.seed).to(device), tokenizer


def own_tokenizer(data: Path | None, file: Path, remedy: str = "remove it, or give another --out") -> Tokenizer:
    """The tokenizer `file` of a small model; trained on the data once where it is not there. Raises TrainError for another kind, with the remedy."""
    with together.first_alone():
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            body = vocabulary.train(data).to_str().encode()
            write_file(file, lambda f: f.write(body))
    tokenizer = Tokenizer.load(file.parent)
    for mark in (END, USER, ASSISTANT):
        if tokenizer.id(mark) is None:
            raise TrainError(f"{file} has no token {mark}: it is not lm2-tiny's tokenizer: {remedy}")
    return tokenizer


def _stories(tokenizer: Tokenizer, config: LM2Config, data: Path | None, task: str, say: Say) -> Stories:
    fixed, book = _read(data, tuple(STORY_WEIGHTS[task]), False, say)
    return Stories(tokenizer.encode, config.memory.chunk, fixed, book, STORY_WEIGHTS[task])


def _read(data: Path | None, kinds: tuple[str, ...], books: bool, say: Say) -> tuple[list[sources.Told], list[str]]:
    """bAbI's stories and sentences of novels. books: they must be there."""
    fixed = sources.stories(data, kinds) if data is not None else []
    left = LeftOut()
    book = sources.sentences(sources.books(data, left=left), left) if data is not None else []
    if "qa4" not in {kind for kind, _, _ in fixed} or (books and not book):
        raise TrainError(
            f"{data or 'no --data'}: stories need bAbI's files in DATA/babi, and novels in DATA/background for --task babilong{_but(left)}"
        )
    say(f"{len(book):,} sentences of books{_but(left)}")
    return fixed, book


def _but(left: LeftOut) -> str:
    return f"; left out: {left}" if left else ""


def chat(
    plan: Plan,
    folder: ModelFolder,
    data: Path | None,
    layers: tuple[int, ...] | None,
    chunk: int,
    blocks: int,
    device: str,
    recompute: bool,
    half: bool,
    fresh: bool,
    adapter: Path | None,
    out: Path,
    say: Say,
) -> Job:
    """A memory for a finished chat model: an adapter, of --task chat or, finding alone, --task find. layers: None for an adapter's own, or the
    default ones. fresh: no run to resume, so the gates of new memories are started from a probe. The backbone's own answers are kept in `out`.

    adapter: begin from this trained memory, whose sizes then count, in the layers that it has. Raises ConvertError if it is for another backbone.
    """
    key = folder_key(folder)
    begun = None if adapter is None else open_adapter(adapter)
    if begun is None:
        memory = start.adapter_memory(folder.config, layers or default_layers(folder.config.num_hidden_layers), chunk, blocks)
    else:
        memory = replace(begun.memory, layers=layers or begun.memory.layers)
        start.check_layers(begun, memory.layers)
        if memory.keys == "pair":
            memory = start.with_topics(memory)
    if plan.task == "chat" and memory.topics:
        memory = replace(memory, values="topics")
    if plan.task == "find" and memory.content != "token":
        raise TrainError(f"{adapter}: --task find needs rows that are made of their token alone (memory.content token), not {memory.content}")
    model = start.warm(folder, memory, plan.seed, half)
    if begun is not None:
        start.take(model, begun, key)
    model = model.to(device)
    tokenizer = Tokenizer.load(folder.path)
    template = ChatTemplate.load(folder.path, tokenizer)
    if template is None:
        raise TrainError(f"{folder.path} has no {TEMPLATE}: --task chat needs a chat model, --task text does not")
    turns = chat_turns(template, name=str(folder.path / TEMPLATE))
    with together.first_alone():
        threads = people.threads(model, key, tokenizer, turns, data, out, plan.seed, say, ask=plan.task == "chat")
    task = NaturalTask(model, threads, plan.seed, recompute=recompute)
    new_topics = bool(memory.topics) and (begun is None or (begun.memory.topics, begun.memory.layers[:1]) != (memory.topics, memory.layers[:1]))
    new = [i for i in memory.layers if begun is None or i not in begun.memory.layers]
    if fresh and new:
        for i, probe in zip(new, task.probe(new), strict=True):
            say(
                f"layer {i}: the gates start from a probe that finds {probe.caught:.0%} of the facts' tokens, {probe.false_alarms:.0%} of the others"
            )

    def write(path: Path, record: Mapping[str, Any]) -> None:
        config = replace(model.config, memory=replace(memory, trained=True, window=min(WINDOW, folder.config.max_position_embeddings)))
        tensors = {n: s.detach().float().cpu().numpy() for n, s in slots_of(model) if ".memory." in n}
        save_adapter(path, config, key, folder.config.name, tensors, record)

    made: Task = task
    if plan.task == "find":
        made = finding = FindTask(model, threads, plan.seed, kept=out / "pools", key=key)
        if fresh and new:
            finding.begin(new)
        if fresh and new_topics:
            finding.begin_topics()
    elif fresh and new_topics:
        task.begin_topics()
    if fresh and memory.values == "topics" and (new or new_topics or begun is None or begun.memory.values != "topics"):
        task.begin_words()
    return Job(made, write, "adapter", origin(model.config, folder, folder.path, [threads.others, threads.books, [d.turns for d in threads.marked]], adapter))


def text(plan: Plan, folder: ModelFolder, data: Path, everything: bool, device: str, recompute: bool, half: bool = False, say: Say = _silent) -> Job:
    """Next-token prediction over several chunks of books and other plain text: the memory alone, or all parameters. half: of a run in bfloat16, where
    layers that are not trained need no more than that."""
    left = LeftOut()
    read = sources.paragraphs(data, left=left)
    if not read and left:
        raise TrainError(f"{data} has no text to train on{_but(left)}")
    say(f"{len(read):,} paragraphs and texts{_but(left)}")
    model = load_model(folder, device, frozen=layers_in_half(folder) if half and not everything else none_frozen)
    for name, p in model.named_parameters():
        p.requires_grad_(everything or ".memory." in name)
    encode = partial(Tokenizer.load(folder.path).encode, plain=True)
    task = TextTask(model, encode, read, recompute=recompute, begin=encode("", add_special=True))

    def write(path: Path, record: Mapping[str, Any]) -> None:
        files = [*(folder.path / name for name in (*TEXT_FILES, SOURCE)), *license_files(folder.path)]
        texts = {file.name: file.read_bytes() for file in files if file.is_file()}
        write_model(model, path, texts, record)

    return Job(task, write, "model", origin(model.config, folder, folder.path, read))


def record(plan: Plan, model: str, options: str = "") -> dict[str, Any]:
    """How something was trained, for people to read. options: of the command line, beside the plan's own."""
    command = f"lm2 train {Path(model).name} --task {plan.task} --data DATA --out OUT --steps {plan.steps} --seed {plan.seed}{options}"
    return {"lm2_version": __version__, "command": command, "plan": plan.to_dict()}


def write_model(model: LM2, path: Path, texts: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """Write a model that was trained as a model folder. Raises WriteError."""
    model.config = replace(model.config, memory=replace(model.config.memory, trained=True))
    with new_folder(path) as folder:
        save_folder(model, folder, "float16")
        write_texts(folder, texts, model.config.eos_token_id, record)


def write_texts(folder: Path, texts: Mapping[str, bytes], ends: Sequence[int], record: Mapping[str, Any]) -> None:
    """What a folder that is being made has beside its weights: its texts, where answers end, and how it was trained."""
    settings = {"eos_token_id": list(ends), "temperature": 0.0}
    made = {GENERATION: json.dumps(settings, indent=2), "training.json": json.dumps(record, indent=2)}
    for name, content in {**texts, **{name: text_.encode() for name, text_ in made.items()}}.items():
        (folder / name).write_bytes(content)
