"""`lm2 chat` through a pipe: one answer a turn, slash commands, session files, and what can go wrong with them."""

import errno
import itertools
import json
import os
import re
import signal

import pytest
import tiny_model
from command_line import shell, spawn, wait_for

from lm2 import Session
from lm2.runtime.statefile.file import read_session

FEW = ("--max-tokens", "4", "--seed", "1", "--threads", "1")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "s.lm2s"


@pytest.fixture
def talk(lm2, tiny):
    """`talk(*lines, options)`: a chat in a pipe."""

    def run(*lines, args=(), code=0):
        result = lm2("chat", tiny, *FEW, *args, stdin="".join(line + "\n" for line in lines))
        assert result.code == code and "unexpected" not in result.err and "Traceback" not in result.err, result
        return result

    return run


def messages(file):
    return [m["content"] for m in read_session(file, None).document["transcript"]]


def test_one_answer_a_turn(talk, tiny):
    from tiny_model import load_tiny

    result = talk("one", "two", "three")
    session = Session(load_tiny(tiny), seed=1)
    assert result.out == "".join(session.say(m, 4) + "\n" for m in ("one", "two", "three")) and result.err == "seed 1\n"
    assert talk("one", args=["--temp", "0"]).err == ""


def test_verbose_says_what_goes_into_the_memory_and_when_the_window_slides(talk):
    said = talk("one", "two", "three", args=["--verbose"]).err.splitlines()[1:]
    written = [int(line.split()[0]) for line in said if "went into the memory" in line]
    totals = [int(line.split("(")[1].split()[0]) for line in said if "went into the memory" in line]
    slid = [line for line in said if "window" in line]
    assert written[0] == 24 and totals == list(itertools.accumulate(written)) and len(said) == len(written) + len(slid)
    assert len(slid) == 1 and slid[0].endswith("tokens are carried over into a new one, what is older is in the memory alone")
    bare = talk("one", "two", "three", args=["--verbose", "--no-memory", "--window", "64"]).err.splitlines()[1:]
    assert len(bare) == 1 and bare[0].endswith("what is older is forgotten")


def test_a_session_goes_on(talk, file):
    whole = talk("one", "two", "three", "four")
    parts = [talk(line, args=["--session", file]).out for line in ("one", "two", "three", "four")]
    assert "".join(parts) == whole.out and messages(file)[::2] == ["one", "two", "three", "four"]
    info = read_session(file, None)
    assert info.meta.seed == 1 and info.now.written > 0


def test_new_starts_fresh(talk, file):
    first = talk("one", args=["--session", file])
    assert talk("one", args=["--session", file]).out != first.out
    assert talk("one", args=["--session", file, "--new"]).out == first.out and messages(file)[::2] == ["one"]
    data = file.read_bytes()
    talk("/help", args=["--session", file, "--new"])
    assert file.read_bytes() == data, "nothing was said, so nothing is replaced"


def test_system_prompt_is_kept(talk, file):
    with_system = talk("one", "two", args=["--system", "Be brief."])
    assert with_system.out != talk("one", "two").out
    first = talk("one", args=["--system", "Be brief.", "--session", file])
    second = talk("two", args=["--session", file])
    assert first.out + second.out == with_system.out


# Slash commands


def test_help_lists_every_command(talk):
    from lm2.runtime.commands.slash import COMMANDS

    said = talk("/help").err
    assert all(name in said for name, (_, usage, _) in COMMANDS.items() if usage)


def test_undo_and_regen(talk, file):
    plain = talk("one", "two")
    assert talk("one", "wrong", "/undo", "two").err.count("took back the last turn") == 1
    result = talk("one", "two", "/regen", "/stats", args=["--session", file])
    assert result.out.startswith(plain.out) and len(result.out) > len(plain.out) and "12 draws" in result.err
    assert messages(file)[::2] == ["one", "two"] and messages(file)[3] == result.out[len(plain.out) : -1]
    talk("/undo", code=1).fails("nothing to undo")
    talk("/regen", code=1).fails("no answer to make again")


def test_reset(talk, file):
    result = talk("one", "/reset", "one", args=["--session", file])
    half = len(result.out) // 2
    assert result.out[:half] == result.out[half:] and messages(file)[::2] == ["one"]


def test_save_and_load(talk, file):
    whole = talk("one", "two", "three")
    first = talk("one", f"/save {file}", "two")
    assert f"saved to {file}" in first.err and messages(file)[::2] == ["one", "two"]
    second = talk("something else", f"/load {file}", "three", "/save")
    assert whole.out == first.out + second.out[len(talk("something else").out) :]
    assert "going on with" in second.err and messages(file)[::2] == ["one", "two", "three"]
    for line, words in (
        ("/save", ["/save needs a file"]),
        ("/load", ["/load needs a file"]),
        (f"/load {file}x", [f"{file}x", "does not exist"]),
        (f"/save {file}", [file, "exists already"]),
        (f"/fork {file}", [file, "exists already"]),
        (f"/save {file}/x/y", [f"{file}/x"]),
        ("/fork", ["/fork needs a file"]),
        ("/read", ["/read needs a file"]),
        ("/read /no/such/file", ["/no/such/file"]),
    ):
        talk(line, code=1).fails(*words)
    assert sorted(p.name for p in file.parent.iterdir()) == [file.name, file.name + ".lock"], "no strays"


def test_nothing_is_written_over(talk, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    for command in ("save", "fork", "load"):
        talk("one", f"/{command} {notes}", code=1).fails(notes)
    assert notes.read_text() == "precious"


def test_fork_leaves_the_original(talk, file):
    other = file.with_name("other.lm2s")
    talk("one", f"/fork {other}", "two", args=["--session", file])
    assert messages(file)[::2] == ["one"] and messages(other)[::2] == ["one", "two"]


def test_a_failed_command_leaves_the_chat_where_it_was(talk, file, lm2, tiny):
    """/load of a damaged file: the conversation, its file and its lock are still the old ones."""
    bad = file.with_name("bad.lm2s")
    talk("x", args=["--session", bad])
    bad.write_bytes(bad.read_bytes()[:-1])
    talk("one", f"/load {bad}", "two", args=["--session", file], code=1).fails(bad, "cut off")
    assert messages(file)[::2] == ["one", "two"]


def test_read_and_memory(talk, tmp_path, file):
    text = tmp_path / "notes.txt"
    text.write_text("The river is called Blorp.\n" * 40)
    result = talk(f"/read {text}", "/memory", "/stats", "what river?", args=["--session", file])
    assert "read 1080 tokens of" in result.err and messages(file)[0] == "[read notes.txt: 1080 tokens]"
    assert "layer 0: 72 of 72 rows not zero" in result.err and re.search(r"window \d+/64 \(\d+ carried over\)", result.err)
    assert messages(file)[1] == "what river?"


def test_exit_stops_reading_lines(talk):
    for word in ("/exit", "/quit", "/bye"):
        assert talk("one", word, "two").out == talk("one").out


def test_a_line_that_only_looks_like_a_command_is_a_message(talk, file):
    talk("/etc/passwd is what?", args=["--session", file])
    assert messages(file)[0] == "/etc/passwd is what?"


# Disks


def test_full_disk(talk, file, monkeypatch):
    """One line on stderr for each turn that could not be saved, the conversation goes on, the old file is whole; and it is saved once it can be."""
    from lm2.models import atomic

    talk("one", args=["--session", file])
    data, real = file.read_bytes(), os.fsync

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = talk("one", "two", "three")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        result = talk("two", "three", args=["--session", file], code=1)
    lines = result.err.splitlines()[1:]
    assert len(lines) == 2 and all(str(file) in line and "the disk is full" in line and "unchanged" in line for line in lines)
    assert whole.out.endswith(result.out) and file.read_bytes() == data and os.fsync is real
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", lambda fd: full(fd) if not calls.append(fd) and len(calls) == 1 else real(fd))
        talk("two", "three", args=["--session", file], code=1).fails("the disk is full")
    assert messages(file)[::2] == ["one", "two", "three"]


def test_file_size_limit(tiny, file):
    """A real refusal by the system (RLIMIT_FSIZE), after a few turns: the last file that fitted is whole."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))"
    result = shell(["chat", tiny, *FEW, "--session", file], "".join(f"turn {i}\n" for i in range(8)).encode(), before=limit)
    problems = [line for line in result.err.splitlines() if not line.startswith("seed")]
    assert result.code == 1 and 0 < len(problems) < 8 and all(str(file) in p and "too large" in p for p in problems), result
    assert messages(file)[::2] == [f"turn {i}" for i in range(8 - len(problems))]
    assert not list(file.parent.glob(".*partial*"))


# Several processes


def test_two_chats_on_one_session_and_a_kill(tiny, file):
    """A second process is refused at once; after `kill -9` in mid-answer the file holds the last finished turn, and a third may go on."""
    args = ["chat", tiny, "--seed", "1", "--session", file, "--max-tokens", "1000000", "--stop", "\n"]
    with spawn(args) as first:
        first.stdin.write(b"one\n")
        first.stdin.flush()
        wait_for(lambda: file.exists() or first.poll() is not None, "the first turn to be saved")
        turns = messages(file)
        first.stdin.write(b"two\n")
        first.stdin.flush()
        second = shell(["chat", tiny, "--session", file], b"x\n")
        second.fails(file, f"is in use by process {first.pid}", "close it there, or use another session file")
        os.kill(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert len(turns) >= 2 and messages(file)[: len(turns)] == turns and len(messages(file)) % 2 == 0
    third = shell([*args, "--max-tokens", "3"], b"three\n")
    assert third.code == 0 and messages(file)[-2] == "three"


def test_interrupt_in_mid_answer_keeps_the_session(tiny, file):
    """Ctrl-C in a pipe: what was said so far is kept in the file, and the exit code is 130."""
    with spawn(["chat", tiny, "--seed", "1", "--temp", "0.9", "--session", file, "--max-tokens", "1000000"]) as process:
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b"seed 1\ninterrupted\n" and out.endswith(b"\n")
    assert len(messages(file)) == 2 and messages(file)[0] == "one" and len(messages(file)[1]) > 0
    assert json.loads(shell(["info", file, "--json"]).out)["undo_steps"] == 1


def test_memory_in_words_and_forget(lm2, talk_tiny, tmp_path):
    """What is shown in a pipe: one clear line for each, on stderr; and the file is written at once."""
    file = tmp_path / "s.lm2s"
    lines = ["Mary went to the kitchen.", "John moved to the garden.", "/memory", "/memory 1", "/forget 1", "/forget 1", "/forget", "/forget two", "/forget 0", "/memory x"]
    result = talk_tiny(*lines, "Where is John?", args=["--session", file])
    assert result.code == 1 and result.out.splitlines() == ["Ok.", "Ok.", "garden."]
    told = result.err.splitlines()
    shown = [line for line in told if "Mary" in line or "John" in line]
    assert sorted(shown[:2]) == ["    1   50%  Mary went to the kitchen. Ok. (in the window)", "    2   50%  John moved to the garden. Ok. (in the window)"]
    assert len(shown) == 3 and "             and 1 more turn, held less" in told
    assert "turn 1 is forgotten: 12 rows of the memory, 12 tokens of the window, 2 messages; turns that can be undone: 1" in told
    errors = [line for line in told if line.startswith("lm2: ")]
    assert errors == [
        "lm2: there is no turn 1 (the last one is 2): /memory shows those there are",
        "lm2: /forget needs the number of a turn: /forget 3 (/memory shows them)",
        "lm2: /forget needs the number of a turn, not 'two': /forget 3 (/memory shows them)",
        "lm2: /forget needs the number of a turn, not '0': /forget 3 (/memory shows them)",
        "lm2: /memory takes how many turns to show, not 'x': /memory 40",
    ]
    known = lm2("info", file)
    assert known.code == 0 and "John moved to the garden. Ok. (in the window)" in known.out and "Mary" not in known.out
    held = json.loads(lm2("info", file, "--json").out)["held"]
    assert [(h["number"], h["text"]) for h in held] == [(3, "Where is John? garden."), (2, "John moved to the garden. Ok.")]


def test_memory_of_a_model_with_topics(lm2, tmp_path):
    folder = tiny_model.make(tmp_path / "m", "gated-topics")
    told = lm2("chat", folder, "--temp", "0", "--threads", "1", "--max-tokens", "4", stdin="one\n/memory\n")
    lines = [line.split(":")[0].strip() for line in told.err.splitlines() if "rows not zero" in line]
    assert told.code == 0 and lines == ["layer 1", "topics"] and "0 of" not in told.err


@pytest.fixture
def talk_tiny(lm2):
    def talk(*lines, args=()):
        return lm2("chat", "lm2-tiny", "--temp", "0", "--threads", "1", *args, stdin="\n".join(lines) + "\n")

    return talk
