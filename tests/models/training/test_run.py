"""The training loop: a run that was killed ends in the same bits as one that was not, another run's checkpoint is refused, Ctrl-C keeps what is done."""

import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_kit
from command_line import wait_for
from training_kit import PLAN, Toy, weights

from lm2.models import atomic
from lm2.models.errors import ModelFileError, WriteError
from lm2.models.training import run as loop
from lm2.models.training.plan import TrainError

TESTS = Path(training_kit.__file__).parent
SCRIPT = f"""
import sys, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
import torch
from training_kit import PLAN, Toy, weights
from lm2.models.training import run as loop
loop.EVERY, loop.SAVE_EVERY = 2, 3
torch.manual_seed(7)
task = Toy(wait=float(sys.argv[2]))
done = loop.run(task, PLAN, Path(sys.argv[1]))
print("done", done)
"""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 2)
    monkeypatch.setattr(loop, "SAVE_EVERY", 3)


def run(out, plan=PLAN, task=None, **options):
    torch.manual_seed(7)
    task = task or Toy()
    return loop.run(task, plan, out, say=lambda text: None, **options), task


def state(out):
    return torch.load(out / loop.STATE, weights_only=True)


def spawn(out, wait):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), str(wait)], env=env, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: its folder, its weights."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "EVERY", 2)
    patch.setattr(loop, "SAVE_EVERY", 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    done, task = run(out)
    torch.set_num_threads(threads)
    patch.undo()
    assert done
    return out, weights(task)


def same_bits(out, whole):
    folder, wanted = whole
    one, two = state(out), state(folder)
    for name, value in wanted.items():
        assert torch.equal(one["weights"][name], value), name
    for slot, values in two["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(one["optimizer"]["state"][slot][key]), torch.as_tensor(value))
    assert {k: one[k] for k in ("step", "task", "plan", "random")} == {k: two[k] for k in ("step", "task", "plan", "random")}
    assert losses(out) == losses(folder)


def losses(out):
    with open(out / "curves.csv", newline="") as f:
        return [(row["step"], row["loss"], row["noise"], row["rate"]) for row in csv.DictReader(f) if int(row["step"]) % 2 == 0]


def test_killed_and_resumed(tmp_path, whole):
    """kill -9 somewhere after a checkpoint; the same command then ends in the same bits."""
    with spawn(tmp_path, 0.15) as process:
        wait_for(lambda: (tmp_path / "curves.csv").exists() and "\n6," in (tmp_path / "curves.csv").read_text(), "step 6")
        wait_for(lambda: state(tmp_path)["step"] == 6, "the checkpoint of step 6")
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL and 6 <= state(tmp_path)["step"] < 12
    with spawn(tmp_path, 0) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("done True\n") and "step 0 of" not in out
    same_bits(tmp_path, whole)


def test_in_legs(tmp_path, whole):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for until in (4, 5, 9):
        done, task = run(tmp_path, until=until)
        assert not done and state(tmp_path)["step"] == until == task.count
    assert run(tmp_path)[0]
    torch.set_num_threads(threads)
    folder, _ = whole
    assert all(torch.equal(v, state(folder)["weights"][n]) for n, v in state(tmp_path)["weights"].items())


def test_another_seed_is_other_bits(tmp_path, whole):
    run(tmp_path, replace(PLAN, seed=4))
    with pytest.raises(AssertionError):
        same_bits(tmp_path, whole)


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(tmp_path):
    with spawn(tmp_path, 0.3) as process:
        wait_for(lambda: (tmp_path / "curves.csv").exists(), "the first row")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    step = state(tmp_path)["step"]
    assert process.returncode == 0 and 2 <= step < 12 and out.endswith("done False\n")
    assert f"stopped at step {step} of 12; the same command goes on from there" in out


def test_a_time_limit(tmp_path):
    done, task = run(tmp_path, seconds=0.0)
    assert not done and task.count == state(tmp_path)["step"] == 1, "one step at least, so that legs get on"
    assert run(tmp_path, seconds=1e9)[0]


def test_a_finished_run_has_nothing_to_do(whole, tmp_path):
    (tmp_path / loop.STATE).write_bytes((whole[0] / loop.STATE).read_bytes())
    done, task = run(tmp_path)
    assert done and task.seen == []


@pytest.mark.parametrize(
    ("change", "words"), [({"rate": 0.5}, "rate 0.01, this one has 0.5"), ({"steps": 13}, "steps 12, this one has 13")]
)
def test_another_plan_is_refused(tmp_path, whole, change, words):
    (tmp_path / loop.STATE).write_bytes((whole[0] / loop.STATE).read_bytes())
    with pytest.raises(TrainError, match=words) as error:
        run(tmp_path, replace(PLAN, **change))
    assert str(tmp_path / loop.STATE) in str(error.value) and "another --out" in str(error.value)


def test_another_precision_or_model_is_refused(tmp_path, whole):
    (tmp_path / loop.STATE).write_bytes((whole[0] / loop.STATE).read_bytes())
    with pytest.raises(TrainError, match="half False, this one has True"):
        run(tmp_path, half=True)
    wide = Toy()
    wide.model = training_kit.model(vocab=62)
    with pytest.raises(TrainError, match=r"embed_tokens.weight \[61, 32\], this one has \[62, 32\]"):
        run(tmp_path, task=wide)
    less = Toy()
    less.model.norm.weight.requires_grad_(False)
    with pytest.raises(TrainError, match=r"norm.weight \[32\], this one has None"):
        run(tmp_path, task=less)


ORIGIN = {"model": "a" * 64, "memory": "{}", "tokenizer": "b" * 64, "data": "c" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "d" * 64}, "model 'aaaaaaaaaaaa', this one has 'dddddddddddd'"),
        ({"data": "d" * 64, "model": "e" * 64}, "model 'aaaaaaaaaaaa'"),
        ({"tokenizer": "d" * 64}, "tokenizer 'bbbbbbbbbbbb'"),
        ({"memory": '{"slots": 2}'}, "memory '{}', this one has '{\"slots\": 2}'"),
        ({"adapter": "d" * 64}, "adapter None, this one has 'dddddddddddd'"),
    ],
)
def test_another_origin_is_refused(tmp_path, change, words):
    run(tmp_path, origin=ORIGIN, until=2)
    before = (tmp_path / loop.STATE).read_bytes()
    with pytest.raises(TrainError, match=re.escape(words)) as error:
        run(tmp_path, origin=ORIGIN | change)
    assert str(tmp_path / loop.STATE) in str(error.value) and "another --out" in str(error.value)
    assert (tmp_path / loop.STATE).read_bytes() == before
    assert run(tmp_path, origin=ORIGIN)[0]


def test_other_data_is_said(tmp_path):
    """It goes on, and a finished run says that it is finished."""
    run(tmp_path, origin=ORIGIN, until=2)
    said = []
    torch.manual_seed(7)
    assert loop.run(Toy(), PLAN, tmp_path, say=said.append, origin=ORIGIN | {"data": "d" * 64})
    assert "began with other data; its next steps are on this" in said[0]
    loop.run(Toy(), PLAN, tmp_path, say=said.append, origin=ORIGIN)
    assert any("began with other data and is finished: give another --out to train on this" in line for line in said)



def test_a_checkpoint_without_an_origin_goes_on_and_says_so(tmp_path):
    run(tmp_path, until=2)
    record = state(tmp_path)
    del record["origin"]
    torch.save(record, tmp_path / loop.STATE)
    said = []
    torch.manual_seed(7)
    loop.run(Toy(), PLAN, tmp_path, say=said.append, until=4, origin=ORIGIN)
    assert str(tmp_path / loop.STATE) in said[0] and "going on with this model and this data" in said[0]
    assert state(tmp_path)["origin"] == ORIGIN, "from now on it is noted"


def test_a_checkpoint_of_any_size_is_read_again(tmp_path, whole, monkeypatch):
    """What was written is not refused for its size: a model of 1.5 GB makes one of 4.4 GB. Here only the file's size is that of a large one."""
    (tmp_path / loop.STATE).write_bytes((whole[0] / loop.STATE).read_bytes())
    real = Path.stat

    def stat(self, **options):
        found = list(real(self, **options))
        if self.name == loop.STATE:
            found[6] = 1 << 40
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", stat)
    assert (tmp_path / loop.STATE).stat().st_size == 1 << 40
    assert run(tmp_path)[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_checkpoint_that_does_not_fit_is_not_called_damaged(tmp_path, whole, monkeypatch, error):
    (tmp_path / loop.STATE).write_bytes((whole[0] / loop.STATE).read_bytes())

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ModelFileError, match="more than this machine's memory has left") as raised:
        run(tmp_path)
    assert "remove" not in str(raised.value)


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None, "short"])
def test_a_damaged_checkpoint_is_named(tmp_path, whole, damage):
    good = (whole[0] / loop.STATE).read_bytes()
    if damage is None:
        torch.save({"plan": json.dumps(PLAN.to_dict())}, tmp_path / loop.STATE)
    else:
        (tmp_path / loop.STATE).write_bytes(good[: len(good) // 2] if damage == "short" else damage)
    with pytest.raises(ModelFileError, match="cannot be read .* remove it to begin again") as error:
        run(tmp_path)
    assert str(tmp_path / loop.STATE) in str(error.value)


@pytest.mark.parametrize("room", [0, 1000, 20000])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, whole, monkeypatch, room):
    """It is one line that names the file; with room again the run ends in the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(tmp_path, until=6)
    before = (tmp_path / loop.STATE).read_bytes()
    assert len(before) > 20000

    class Full(io.FileIO):
        def write(self, data):
            if str(self.name).endswith(".state.pt.partial") and self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", Full, raising=False)
        with pytest.raises(WriteError, match="state.pt: .*the previous file is unchanged; the disk is full"):
            run(tmp_path)
    assert (tmp_path / loop.STATE).read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]
    assert run(tmp_path)[0]
    torch.set_num_threads(threads)
    same_bits(tmp_path, whole)


def test_a_damaged_table_is_named(tmp_path, whole):
    run(tmp_path, until=4)
    for damage in (b"step,loss\n\xff,1\n", b"step,loss\n" + b"1" * 200000):
        (tmp_path / "curves.csv").write_bytes(damage)
        with pytest.raises(TrainError, match=r"curves.csv .*: remove it"):
            run(tmp_path)
    (tmp_path / "curves.csv").write_bytes(b"step,loss\n\n\xc2\xb2,1\n2,0.5\n3")
    assert run(tmp_path)[0], "half a row and a step that is no number are dropped"


def test_a_kill_between_the_table_and_the_checkpoint(tmp_path, whole):
    """The table is ahead of the checkpoint: its later rows are written again, none twice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(tmp_path, until=6)
    kept = (tmp_path / loop.STATE).read_bytes()
    run(tmp_path, until=8)
    (tmp_path / loop.STATE).write_bytes(kept)
    (tmp_path / ".state.pt.partial").write_bytes(kept[:1000])
    assert run(tmp_path)[0]
    torch.set_num_threads(threads)
    same_bits(tmp_path, whole)
    assert not (tmp_path / ".state.pt.partial").exists()


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"plan": Evil()}, tmp_path / loop.STATE)
    with pytest.raises(ModelFileError):
        run(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_gradient_that_is_not_finite(tmp_path):
    task = Toy()
    with torch.no_grad():
        task.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainError, match="step 0: the gradient is not finite"):
        run(tmp_path, task=task)
    assert not (tmp_path / loop.STATE).exists()
