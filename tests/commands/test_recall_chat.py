"""`lm2 chat` with a model that answers from what was said: what is said of it, and what is brought back after /undo, /regen, /forget, a restart and Ctrl-C."""

import re
import signal

import pytest
import recall_kit
import tiny_model
from command_line import spawn

from lm2 import Session
from lm2.runtime.loading import load
from lm2.runtime.statefile.file import read_session

FEW = ("--max-tokens", "4", "--seed", "1", "--threads", "1")
TOLD, OTHER, ASK, IDLE = "the zebra eats plums", "my brother is a baker", "zebra eats plums", "0000"
FROM = "answered from what was said: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a recall of its own, whose answers end only at --max-tokens."""
    return recall_kit.put(tiny_model.make(tmp_path_factory.mktemp("recall") / "tiny", ends=()))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "s.lm2s"


@pytest.fixture
def talk(lm2, folder):
    """`talk(*lines, args)`: a chat in a pipe; the answers, and what each that came from something said came from."""

    def run(*lines, args=(), model=folder):
        result = lm2("chat", model, *FEW, "--verbose", *args, stdin="".join(line + "\n" for line in lines))
        assert result.code == 0 and "Traceback" not in result.err, result
        return result.out, [line.removeprefix(FROM) for line in result.err.splitlines() if line.startswith(FROM)]

    return run


def turn(number, text=TOLD):
    return f"turn {number}, {text!r}"


def messages(file):
    return [m["content"] for m in read_session(file, None).document["transcript"]]


def test_verbose_says_which_turn_an_answer_came_from(talk, folder, lm2):
    out, found = talk(OTHER, TOLD, IDLE, ASK)
    assert found == [turn(2)]
    session = Session(load(folder, "torch", device="cpu", threads=1), seed=1)
    assert out == "".join(session.say(m, 4) + "\n" for m in (OTHER, TOLD, IDLE, ASK)) and [p.number for p in session.recalled] == [2]
    quiet = lm2("chat", folder, *FEW, stdin=f"{OTHER}\n{TOLD}\n{IDLE}\n{ASK}\n")
    assert (quiet.out, quiet.err) == (out, "seed 1\n")


def test_several_turns_are_named_in_their_order(talk):
    assert talk("my zebra eats plums!", OTHER, "zebra eats plums?", ASK)[1][-1] == f"{turn(1, 'my zebra eats plums!')}; {turn(3, 'zebra eats plums?')}"
    long = f"{TOLD} and pears and cherries and more of them than anybody else does"
    assert talk(long, ASK)[1] == [turn(1, long[:60])], "the beginning of a part of it"


def test_without_memory_nothing_is_recalled(talk, tiny):
    """The answers are those of the same model without a recall; with one they are others."""
    said = (TOLD, IDLE, ASK)
    out, found = talk(*said, args=["--no-memory"])
    assert found == [] and out == talk(*said, args=["--no-memory"], model=tiny)[0]
    assert talk(*said)[0] != talk(*said, model=tiny)[0] and talk(*said, model=tiny)[1] == []


def test_undo(talk, file):
    """What was taken back is not recalled; an answer that was is made again as it was."""
    assert talk(TOLD, "/undo", ASK)[1] == []
    out, found = talk(TOLD, IDLE, ASK, "/undo", ASK, args=["--session", file])
    plain = talk(TOLD, IDLE, ASK)[0]
    assert found == [turn(1)] * 2 and out == plain + plain[len(talk(TOLD, IDLE)[0]) :] and messages(file)[::2] == [TOLD, IDLE, ASK]
    assert talk("/undo", "/undo", "/undo", ASK, args=["--session", file])[1] == [] and messages(file)[::2] == [ASK]


def test_regen(talk, file):
    """Answered again from the same turn, with further draws, in the answer's place."""
    plain = talk(TOLD, ASK)[0]
    out, found = talk(TOLD, ASK, "/regen", args=["--session", file])
    assert found == [turn(1)] * 2 and out.startswith(plain)
    again = out[len(plain) : -1]
    assert again != plain[len(talk(TOLD)[0]) : -1] and messages(file)[::2] == [TOLD, ASK] and messages(file)[3] == again
    assert talk("/regen", args=["--session", file])[1] == [turn(1)], "and from the file"
    assert messages(file)[::2] == [TOLD, ASK]


def test_forget(talk, file):
    """A forgotten turn is not in the file and never brought back; other turns are, by their own numbers."""
    _, found = talk(TOLD, OTHER, "/forget 1", ASK, f"{OTHER}?", args=["--session", file])
    assert found == [turn(2, OTHER)] and TOLD.encode() not in file.read_bytes()
    found = talk("zebra eats plums?", args=["--session", file])[1]
    assert turn(3, ASK) in found[0] and "turn 1" not in found[0]
    assert talk(TOLD, ASK, "/forget 1", "/regen")[1] == [turn(1)], "what was answered from it is not answered from it again"


def test_a_session_that_is_opened_again(talk, file):
    """From the file as in one go, in the copy of /fork too; not after /reset."""
    whole, found = talk(TOLD, OTHER, IDLE, ASK)
    parts = [talk(line, args=["--session", file]) for line in (TOLD, OTHER, IDLE, ASK)]
    assert "".join(out for out, _ in parts) == whole and [f for _, f in parts] == [[], [], [], found] and found == [turn(1)]
    copy = file.with_name("copy.lm2s")
    assert talk(f"/fork {copy}", ASK + "!", args=["--session", file])[1] == [f"{turn(1)}; {turn(4, ASK)}"]
    assert talk(f"/load {copy}", f"{TOLD}!")[1][-1].startswith(turn(1))
    assert talk("/reset", ASK, args=["--session", copy])[1] == []


def test_documents_are_not_looked_through(talk, tmp_path):
    """Nor is the line that stands for one in the transcript."""
    notes = tmp_path / TOLD
    notes.write_text(TOLD)
    assert talk(f"/read {notes}", ASK)[1] == [] and talk(TOLD, f"/read {notes}", ASK)[1] == [turn(1)]


def test_stats_are_of_the_window_in_which_it_was_answered(lm2, folder):
    said = lm2("chat", folder, *FEW, stdin=f"{TOLD}\n{IDLE}\n/stats\n{ASK}\n/stats\n").err
    read = [int(n) for n in re.findall(r"last answer: (\d+) tokens in", said)]
    quoted = len("Told:\n- ") + len(TOLD) + len("\n\n") + len(ASK) - len(IDLE)
    assert len(read) == 2 and read[1] - read[0] == quoted and "4 out at" in said


def test_interrupt_in_a_recalled_answer_keeps_a_whole_turn(talk, folder, file):
    talk(TOLD, IDLE, args=["--session", file])
    with spawn(["chat", folder, "--verbose", "--session", file, "--max-tokens", "1000000", "--threads", "1"]) as process:
        process.stdin.write(f"{ASK}\n{ASK}\n".encode())
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    err = err.decode()
    assert process.returncode == 130 and err.count(FROM) == 1 and turn(1) in err and err.endswith("interrupted\n") and out.endswith(b"\n")
    kept = messages(file)
    assert kept[::2] == [TOLD, IDLE, ASK] and kept[5]
    found = talk(f"the {ASK}", "/undo", "/undo", ASK, args=["--session", file])[1]
    assert len(found) == 2 and found[1] == turn(1) and messages(file)[::2] == [TOLD, IDLE, ASK] and messages(file)[:4] == kept[:4]
