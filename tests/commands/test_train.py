"""`lm2 train` as a user types it: every task at toy size, going on, wrong command lines, several processes, and a memory that learns."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sources
import tiny_model
import tiny_tokenizer
import torch
import training_kit

from lm2.models.training import jobs, start, together
from lm2.models.training import run as loop
from lm2.models.training.plan import Stage
from lm2.models.training.story_task import StoryTask

ONE = ("--threads", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small folder of every kind of text."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("babi", "background", "chat", "tinystories"):
        (folder / name).mkdir()
    moves = "".join(
        f"1 Mary moved to the garden.\n2 John went to the {r}.\n3 Where is Mary?\tgarden\t1\n" for r in ("kitchen", "office") * 20
    )
    (folder / "babi" / "qa1_x_train.txt").write_text(moves)
    rooms = ("kitchen", "office", "garden", "hallway", "bedroom", "bathroom")
    north = "".join(f"1 The {a} is north of the {b}.\n2 What is north of the {b}?\t{a}\t1\n" for a in rooms for b in rooms if a != b)
    (folder / "babi" / "qa4_x_train.txt").write_text(north)
    for name in ("a", "b", "c"):
        (folder / "background" / f"{name}.txt").write_text(
            f"It was {name} that stood above the quiet river all through the long night. " * 5 + "\n"
        )
    turns = [{"role": role, "content": content} for role, content in training_kit.DIALOGUE]
    (folder / "chat" / "d.jsonl").write_text("".join(json.dumps({"turns": turns}) + "\n" for _ in range(5)))
    said = "User 1: Hello there.\nUser 2: Hi, how are you?"
    (folder / "chat" / "p.csv").write_text(f'x,Best Generated Conversation\n1,"{said}"\n')
    (folder / "tinystories" / "t.jsonl").write_text(json.dumps({"text": "Once there was a cat. " * 12}) + "\n")
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A llama with ChatML as a Hugging Face folder, and as a model folder."""
    where = tmp_path_factory.mktemp("llama")
    hf = sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB, layers=4, max_position_embeddings=512), where / "hf")
    tiny_tokenizer.make(hf)
    from lm2.models.checkpoints.convert import convert
    from lm2.models.checkpoints.warmstart import MemoryRequest

    convert(hf, where / "model", MemoryRequest())
    return hf, where / "model"


@pytest.fixture
def small(monkeypatch):
    """Small pools and few answers, so that a step of --task chat takes no time."""
    from lm2.models.training import find_task, natural_task, people, pools

    for name, value in {"LENGTHS": (60, 120), "OTHER_LENGTHS": (60, 120), "PASSAGE": 40, "TAIL": 80}.items():
        monkeypatch.setattr(pools, name, value)
    monkeypatch.setattr(natural_task.NaturalTask.__init__, "__defaults__", ((1, 1, 2), 3, False))
    probe = natural_task.NaturalTask.probe
    monkeypatch.setattr(natural_task.NaturalTask, "probe", lambda self, layers: probe(self, layers, 3))
    monkeypatch.setattr(find_task.FindTask.__init__, "__defaults__", (8, 4, 2, None, ""))
    monkeypatch.setattr(people.answers, "questions", lambda seed: ["What is seven plus five?"])
    monkeypatch.setattr(people.talk, "ordinary", lambda split: ("Why is the sky blue?", "What is a prime number?"))
    monkeypatch.setattr(people.talk, "unknown", lambda: ("Where are my keys?",))
    monkeypatch.setattr(loop, "EVERY", 1)


CHAT = (
    "--task",
    "chat",
    "--steps",
    "4",
    "--stages",
    "0.5:1x1,1:1x2",
    "--memory-layers",
    "2,3",
    "--memory-chunk",
    "128",
    "--memory-blocks",
    "16",
    *ONE,
)


@pytest.mark.slow
def test_chat_makes_an_adapter_for_the_llama(lm2, small, data, chat_model, tmp_path):
    hf, model = chat_model
    args = ("train", model, *CHAT, "--data", data, "--out", tmp_path / "out")
    first = lm2(*args, "--until", "2")
    assert first.code == 0 and "stopped at step 2 of 4" in first.out and first.out.count("the gates start from a probe") == 2, first
    assert not (tmp_path / "out" / "adapter").exists()
    second = lm2(*args)
    assert second.code == 0 and f"written to {tmp_path / 'out' / 'adapter'}" in second.out and "probe" not in second.out, second
    assert "step 2 of 4" in second.out and "step 4/4" in second.out
    record = json.loads((tmp_path / "out" / "adapter" / "adapter.json").read_text())
    assert record["memory"]["layers"] == [2, 3] and record["memory"]["slots"] == 2048 and record["memory"]["trained"]
    assert "--memory-layers 2,3 --memory-chunk 128 --memory-blocks 16" in record["training"]["command"]
    assert lm2("convert", hf, tmp_path / "made", "--adapter", tmp_path / "out" / "adapter").code == 0
    said = lm2("generate", tmp_path / "made", "--chat", "--prompt", "Hi", "--max-tokens", "4", "--seed", "1", *ONE)
    assert said.code == 0, said
    more = ("--adapter", tmp_path / "out" / "adapter", "--data", data)
    went_on = lm2("train", model, *CHAT, *more, "--until", "1", "--out", tmp_path / "more")
    assert went_on.code == 0 and "probe" not in went_on.out, went_on
    again = lm2(*args)
    assert again.code == 0 and "is there already, and is left as it is" in again.out
    assert (tmp_path / "out" / "curves.csv").read_text().count("\n") == 5


@pytest.mark.slow
def test_chat_in_legs_is_one_run(lm2, small, data, chat_model, tmp_path):
    args = ("train", chat_model[1], *CHAT, "--data", data, "--half")
    assert lm2(*args, "--out", tmp_path / "one").code == 0
    for until in ("1", "3", "4"):
        assert lm2(*args, "--out", tmp_path / "legs", "--until", until).code == 0
    one, legs = ((tmp_path / name / "adapter" / "memory.safetensors").read_bytes() for name in ("one", "legs"))
    assert one == legs
    assert lm2(*args, "--seed", "1", "--out", tmp_path / "other").code == 0
    assert (tmp_path / "other" / "adapter" / "memory.safetensors").read_bytes() != one


def test_a_memory_smaller_than_a_conversation_is_refused(lm2, small, data, chat_model, tmp_path):
    few = [*CHAT[: CHAT.index("--memory-chunk") + 1], "16", "--memory-blocks", "1", *ONE]
    lm2("train", chat_model[1], *few, "--data", data, "--out", tmp_path / "out").fails("16 rows is too small", "more --memory-blocks")


@pytest.mark.slow
def test_finding_first_then_answers(lm2, small, data, chat_model, tmp_path):
    """--task find makes an adapter; --task chat goes on from it, with a memory in another layer too, whose gates start from a probe."""
    chat = ("--task", "chat", *CHAT[2:])
    layers = chat.index("--memory-layers")
    find = ("train", chat_model[1], "--task", "find", *chat[2:], "--data", data, "--out", tmp_path / "find")
    found = lm2(*find)
    assert "asking the backbone" not in found.out and not (tmp_path / "find" / "answers.json").exists()
    assert found.code == 0 and "looks" in found.out and "layer 3" in found.out and found.out.count("the gates start from a probe") == 2, found
    more = (*chat[: layers + 1], "1,3", *chat[layers + 2 :], "--data", data, "--out", tmp_path / "chat", "--adapter", tmp_path / "find" / "adapter")
    went_on = lm2("train", chat_model[1], *more)
    assert went_on.code == 0 and went_on.out.count("the gates start from a probe") == 1 and "layer 1: the gates" in went_on.out, went_on
    record = json.loads((tmp_path / "chat" / "adapter" / "adapter.json").read_text())
    assert record["memory"]["layers"] == [1, 3] and record["memory"]["window"] == 512
    other = (*chat[: layers + 1], "0,1", *chat[layers + 2 :], "--data", data, "--out", tmp_path / "no", "--adapter", tmp_path / "find" / "adapter")
    lm2("train", chat_model[1], *other).fails("has memories for layers (2, 3), the model for (0, 1)")


@pytest.mark.parametrize("task", ["recall", "babilong"])
def test_tiny(lm2, data, tmp_path, monkeypatch, task):
    monkeypatch.setattr(jobs.vocabulary, "SIZE", 600)
    args = ("train", "tiny", "--task", task, "--data", data, "--steps", "3", "--stages", "1:1-2x2", "--out", tmp_path / "out", *ONE)
    first = lm2(*args)
    assert first.code == 0 and "step 3/3" in first.out, first
    model = tmp_path / "out" / "model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json", "training.json"} == {
        p.name for p in model.iterdir()
    }
    assert not [p for p in (tmp_path / "out").iterdir() if "partial" in p.name]
    told = lm2("generate", model, "--chat", "--prompt", "Mary moved to the garden.", "--max-tokens", "4", "--json", *ONE)
    assert told.code == 0, told
    assert json.loads((model / "training.json").read_text())["plan"]["steps"] == 3
    on = lm2(
        "train",
        model,
        "--task",
        {"recall": "distance"}.get(task, task),
        "--data",
        data,
        "--steps",
        "1",
        "--stages",
        "1:1x2",
        "--out",
        tmp_path / "on",
        *ONE,
    )
    assert on.code == 0 and "step 1/1" in on.out, on


@pytest.mark.parametrize("everything", [False, True])
def test_text(lm2, data, chat_model, tmp_path, everything):
    args = ["train", chat_model[1], "--task", "text", "--data", data, "--steps", "2", "--stages", "1:2x1", "--out", tmp_path / "out", *ONE]
    result = lm2(*args, *(["--all-parameters", "--recompute"] if everything else []))
    assert result.code == 0 and "last_chunk" in result.out, result
    before, after = (sources.read_folder(f)[0] for f in (chat_model[1], tmp_path / "out" / "model"))
    kept = {name: value.astype(np.float16 if value.ndim == 2 else np.float32) for name, value in before.items()}
    changed = {name for name in before if (kept[name] != after[name]).any()}
    assert any(".memory." in name for name in changed)
    assert any(".memory." not in name for name in changed) == everything


@pytest.fixture(scope="module")
def other_model(chat_model, tmp_path_factory):
    """A llama of the same shape with other weights."""
    from lm2.models.checkpoints.convert import convert

    where = tmp_path_factory.mktemp("other")
    hf = sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB, layers=4, max_position_embeddings=512, seed=9), where / "hf")
    tiny_tokenizer.make(hf)
    convert(hf, where / "model")
    return where / "model"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text", "chat"])
def test_a_run_goes_on_with_what_it_began_with(lm2, small, data, chat_model, other_model, tmp_path, task):
    """Another backbone of the same shape, another tokenizer, or a memory of another size: each is named, nothing is trained. Other data is said."""
    text = ("--task", "text", "--steps", "4", "--stages", "1:1x1", *ONE)
    args = {"text": text, "chat": CHAT}[task]
    out = ("--out", tmp_path / "out")
    assert lm2("train", chat_model[1], *args, "--data", data, *out, "--until", "1").code == 0
    before = (tmp_path / "out" / "state.pt").read_bytes()
    named = {"text": ("state.pt", "of a run with model '"), "chat": ("answers.json", "has answers of backbone")}[task]
    lm2("train", other_model, *args, "--data", data, *out).fails(tmp_path / "out" / named[0], named[1], "another --out")
    more = shutil.copytree(data, tmp_path / "data")
    for name in ("a", "b", "c"):
        with open(more / "background" / f"{name}.txt", "a") as f:
            f.write("One more line that nobody had read before the river came up to the door of the house where it stood. " * 4 + "\n")
    same = shutil.copytree(chat_model[1], tmp_path / "model")
    tokenizer = json.loads((same / "tokenizer.json").read_text())
    (same / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    lm2("train", same, *args, "--data", data, *out).fails("of a run with tokenizer '")
    if task == "chat":
        lm2("train", chat_model[1], *args, "--data", data, *out, "--memory-blocks", "3").fails("of a run with memory '", '"slots": 384')
    assert (tmp_path / "out" / "state.pt").read_bytes() == before
    moved = shutil.copytree(chat_model[1], tmp_path / "moved")
    gone_on = lm2("train", moved, *args, "--data", shutil.copytree(data, tmp_path / "moved data"), *out, "--until", "2")
    assert gone_on.code == 0 and "other data" not in gone_on.out
    assert "began with other data; its next steps are on this" in lm2("train", moved, *args, "--data", more, *out, "--until", "3").out


def test_what_is_left_out_of_the_text_is_one_line(lm2, chat_model, tmp_path):
    for name, content in (("background/a.txt", "今天天气很好。" * 40), ("background/x.jpg", "x"), ("tinystories/t.jsonl", '{"text": "a\u2028b"}\n{}')):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    args = ("train", chat_model[1], "--task", "text", "--steps", "1", "--stages", "1:1x1", "--out", tmp_path / "out", *ONE)
    (tmp_path / "out" / "model").mkdir(parents=True)
    result = lm2(*args, "--data", tmp_path / "data")
    assert (tmp_path / "out" / "model" / "config.json").exists(), "an empty folder is no result"
    said = '2 paragraphs and texts; left out: 1 record without a "text" (t.jsonl); 1 file of another kind (x.jpg)'
    assert result.code == 0 and said in result.out.split("\n"), result
    (tmp_path / "data" / "tinystories" / "t.jsonl").write_text("{}\n{}")
    (tmp_path / "data" / "background" / "a.txt").write_text("\n")
    lm2(*args, "--data", tmp_path / "data").fails(tmp_path / "data", "no text to train on", "2 records without", "1 file without text (a.txt)")


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (("tiny", "--task", "chat"), ("--task chat trains a model folder, not tiny",), 1),
        (("MODEL", "--task", "recall"), ("--task recall trains tiny, not",), 1),
        (("MODEL", "--task", "babilong"), ("has no token <|", "lm2-babi"), 1),
        (("MODEL", "--task", "text"), ("--task text needs --data",), 1),
        (("tiny", "--task", "recall", "--stages", "1:x"), ("stage '1:x' must read like",), 1),
        (("EMPTY", "--task", "chat"), ("EMPTY",), 1),
        (("MODEL", "--task", "chat", "--memory-layers", "1,9"), ("9",), 1),
    ],
)
def test_wrong_command_lines(lm2, chat_model, tmp_path, args, words, code):
    args = [str(chat_model[1]) if a == "MODEL" else a for a in args]
    lm2("train", *args, "--out", tmp_path / "out", *ONE).fails(*words, code=code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("chat/d.jsonl", "{", ("line 1 is not JSON",)),
        ("chat/d.jsonl", "[]\n", ("line 1 must be a JSON object, not list",)),
        ("chat/d.jsonl", '{"turns": [{"role": "user"}]}\n', ("dialogue 1", "turns with role and content")),
        ("background/a.txt", b"\xff\xfe", ("UTF-16", "not UTF-8",)),
    ],
)
def test_wrong_data(lm2, small, chat_model, tmp_path, file, text, words):
    path = tmp_path / "data" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    lm2("train", chat_model[1], *CHAT, "--data", tmp_path / "data", "--out", tmp_path / "out").fails(path, *words)


def test_no_stories(lm2, tmp_path):
    (tmp_path / "data").mkdir()
    args = ("train", "tiny", "--task", "recall", "--data", tmp_path / "data", "--out", tmp_path / "out", *ONE)
    lm2(*args).fails(tmp_path / "data", "bAbI's files in DATA/babi")


def test_a_model_without_a_template(lm2, tmp_path):
    folder = tiny_model.make(tmp_path / "m", chunk=128)
    (folder / "chat_template.jinja").unlink()
    lm2("train", folder, *CHAT, "--memory-layers", "1", "--out", tmp_path / "out").fails(folder, "needs a chat model")


def test_a_template_whose_turns_are_not_the_conversation(lm2, small, tmp_path):
    folder = tiny_model.make(tmp_path / "m", chunk=128)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}")
    said = ("puts a first turn in another way", "another template for --task chat")
    lm2("train", folder, *CHAT, "--memory-layers", "1", "--out", tmp_path / "out").fails(folder / "chat_template.jinja", *said)


@pytest.mark.slow
def test_a_memory_learns():
    """Names are bound to rooms within a hundred steps of short stories: the loss falls far below where it began."""
    words = training_kit.Words()
    stories = training_kit.stories(words, size=32)
    config = replace(start.tiny_config(64, 2), hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16)
    config = replace(config, memory=replace(config.memory, head_dim=16, slots=32, chunk=32))
    task = StoryTask(start.fresh(config, 0), stories, {"qa1": 1.0})
    optimizer = torch.optim.AdamW(task.model.parameters(), 3e-3, betas=(0.9, 0.98))
    rng = training_kit.rng()
    losses = []
    for _ in range(100):
        terms = task.step(Stage(1.0, 1, 1, 12), rng)
        optimizer.zero_grad()
        terms.loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(terms.loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0] and len(words.ids) < 64, (losses[0], losses[-10:])


PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from training_kit import Toy, PLAN, weights
from lm2.models.training import run as loop, together
torch.set_num_threads(1)
loop.SAVE_EVERY = 1
class Same(Toy):
    def step(self, stage, rng):
        torch.manual_seed(self.count)
        return super().step(stage, rng)
with together.joined("cpu"):
    with together.first_alone():
        first = not (Path(sys.argv[1]) / "made").exists()
        (Path(sys.argv[1]) / "made").touch()
    assert first == (together.rank() == 0)
    task = Same(seed=1 + together.rank())
    loop.run(task, PLAN, Path(sys.argv[1]), until=1)
    torch.save({"weights": weights(task), "ids": task.seen}, Path(sys.argv[1]) / f"rank{together.rank()}.pt")
    assert together.any_of(together.rank() == 1, torch.device("cpu")) and not together.any_of(False, torch.device("cpu"))
"""


@pytest.mark.slow
def test_two_processes_are_one_run_on_both_their_batches(tmp_path):
    """Their first step is the step that one process takes on the mean of the two gradients; both end with the same weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = str(Path(training_kit.__file__).parent)
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), tests], env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    one, two = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    assert not torch.equal(one["ids"][0], two["ids"][0]), "each has its own batches"
    task = training_kit.Toy(seed=1)
    sums = {}
    for rank in range(2):
        task.count = 0
        torch.manual_seed(0)
        task.model.zero_grad()
        stage = training_kit.PLAN.stage(0)
        terms = task.step(stage, training_kit.random.Random(f"{training_kit.PLAN.seed} {rank}"))
        terms.loss.backward()
        for name, p in task.model.named_parameters():
            sums[name] = sums.get(name, 0) + p.grad / 2
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    for name, p in task.model.named_parameters():
        p.grad = sums[name]
    torch.nn.utils.clip_grad_norm_(parameters, training_kit.PLAN.clip)
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": training_kit.PLAN.decay},
        {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=training_kit.PLAN.rate_at(0), betas=(0.9, 0.98)).step()
    for name, p in task.model.named_parameters():
        assert torch.equal(one["weights"][name], two["weights"][name])
        assert torch.allclose(one["weights"][name], p, rtol=0, atol=2e-5), name
    assert (
        one["weights"]["layers.0.memory.token_proj.weight"] - training_kit.Toy(seed=1).model.blocks[0].memory.token_proj.weight
    ).abs().max() > 1e-3
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 2, "one of them writes"


def test_devices_of_several_processes(monkeypatch):
    assert together.own_device("cuda") == "cuda" and together.own_device("cpu") == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert together.own_device("cuda") == "cuda:3" and together.own_device("cpu") == "cpu" and together.own_device("cuda:1") == "cuda:1"
