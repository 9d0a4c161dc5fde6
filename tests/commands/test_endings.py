"""A command that is ended from outside in mid-answer (SIGTERM, SIGHUP, nobody reads on) keeps what was answered so far, as after Ctrl-C."""

import errno
import os
import signal

import pytest
from command_line import spawn

from lm2.models.errors import WriteError
from lm2.runtime.commands import common, reading, talk
from lm2.runtime.commands.common import Ended, soft_interrupt
from lm2.runtime.statefile import read_session

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")
LONG = ("--seed", "1", "--threads", "1", "--max-tokens", "200")
SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])


def messages(file):
    return [m["content"] for m in read_session(file, None).document["transcript"]]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "s.lm2s"


def at_piece(monkeypatch, count, do):
    """`do()` where the answer's piece number `count` would be written."""
    written, real = [], talk.write_out

    def write_out(text):
        written.append(text)
        if len(written) == count:
            do()
        real(text)

    monkeypatch.setattr(talk, "write_out", write_out)
    return written


@SIGNALS
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_in_mid_answer(lm2, tiny, file, monkeypatch, number, times):
    """However often it comes (a shell sends SIGHUP once more): the turn is in the file, the rest of the input is not answered."""
    at_piece(monkeypatch, 5, lambda: [os.kill(os.getpid(), number) for _ in range(times)])
    result = lm2("chat", tiny, *LONG, "--session", file, stdin="one\ntwo\n")
    assert result.code == 128 + number and result.err == "seed 1\n"
    said = messages(file)
    assert said[0] == "one" and len(said) == 2 and 1 <= len(said[1]) < 30 and result.out == said[1] + "\n"
    monkeypatch.undo()
    assert lm2("chat", tiny, *LONG, "--session", file, stdin="/undo\n").code == 0 and messages(file) == []
    assert signal.getsignal(number) == signal.SIG_DFL


@SIGNALS
def test_a_signal_while_the_session_is_saved(lm2, tiny, file, monkeypatch, number):
    from lm2.runtime import keeping

    real = keeping.write_session

    def write(*args):
        os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(keeping, "write_session", write)
    assert lm2("chat", tiny, *LONG[:-1], "3", "--session", file, stdin="one\ntwo\n").code == 128 + number
    assert messages(file)[::2] == ["one"]


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_nobody_reads_on(lm2, tiny, file, monkeypatch, code):
    """A closed pipe, a terminal that is gone, a full disk behind stdout."""

    def fail():
        raise OSError(code, os.strerror(code), "stdout")

    at_piece(monkeypatch, 5, fail)
    result = lm2("chat", tiny, *LONG, "--session", file, stdin="one\ntwo\n")
    assert result.code == 1 and len(result.err.splitlines()) == (1 if code == errno.EPIPE else 2)
    said = messages(file)
    assert said[0] == "one" and len(said) == 2 and len(said[1]) >= 4


def test_regen_and_a_signal(lm2, tiny, file, monkeypatch):
    """The new answer, as far as it came, is in the old one's place."""
    lm2("chat", tiny, *LONG[:-1], "3", "--session", file, stdin="one\n")
    old = messages(file)
    at_piece(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert lm2("chat", tiny, *LONG, "--session", file, stdin="/regen\n").code == 143
    assert len(messages(file)) == 2 and messages(file)[0] == "one" and messages(file) != old


def test_a_signal_while_a_text_is_read(lm2, tiny, file, tmp_path, monkeypatch):
    from lm2.runtime import reading as texts

    text = tmp_path / "long.txt"
    text.write_text("A line of text.\n" * 400)
    monkeypatch.setattr(texts, "BLOCK_BYTES", 512)
    real = texts.read_blocks

    def blocks(path):
        for number, block in enumerate(real(path)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield block

    monkeypatch.setattr(texts, "read_blocks", blocks)
    assert lm2("chat", tiny, *LONG, "--session", file, stdin=f"/read {text}\none\n").code == 143
    (said,) = messages(file)
    assert said.startswith("[read long.txt: ") and 0 < int(said.split()[2]) < 16 * 400
    assert reading and lm2("generate", tiny, *LONG, "-p", "x", "--context", text).code == 143


def test_what_cannot_be_saved_is_said(lm2, tiny, file, monkeypatch):
    from lm2.models import atomic

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    at_piece(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(atomic.os, "fsync", full)
    result = lm2("chat", tiny, *LONG, "--session", file, stdin="one\n")
    assert result.code == 143 and "the disk is full" in result.err.splitlines()[-1]


def test_the_block_itself(monkeypatch):
    with pytest.raises(Ended) as ended, soft_interrupt() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupted()
        raise WriteError("said on the way")
    assert ended.value.code == 143
    with pytest.raises(KeyboardInterrupt), soft_interrupt() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with soft_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert common.ENDING == (signal.SIGTERM, signal.SIGHUP)


def test_a_pipe_that_is_closed_in_mid_answer(tiny, file):
    """As `lm2 chat | head -c 1`, in processes of their own."""
    with spawn(["chat", tiny, "--seed", "1", "--temp", "0.9", "--session", file, "--max-tokens", "1000000"]) as process:
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 1 and process.stderr.read() == b"seed 1\n"
    said = messages(file)
    assert len(said) == 2 and said[0] == "one" and said[1]
