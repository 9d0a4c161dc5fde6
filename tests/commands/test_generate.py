"""`lm2 generate`: what goes to stdout and what to stderr, JSON, context, interrupts, a reader that goes away."""

import io
import json
import signal

import pytest
from command_line import spawn

FEW = ("--max-tokens", "5", "--threads", "1")


def as_json(result):
    assert result.code == 0 and not result.err, result
    return json.loads(result.out)


def test_text_to_stdout_the_rest_to_stderr(lm2, tiny):
    result = lm2("generate", tiny, "-p", "hello", *FEW, "--seed", "7")
    assert result.code == 0 and result.out.endswith("\n") and len(result.out) > 3 and result.err == "seed 7\n"
    result = lm2("generate", tiny, "-p", "hello", *FEW, "--temp", "0")
    assert result.code == 0 and not result.err


def test_three_ways_to_give_a_prompt(lm2, tiny, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("say\nthis")
    args = ("generate", tiny, *FEW, "--seed", "7")
    want = lm2(*args, "--prompt", "say\nthis")
    assert lm2(*args, "--prompt-file", file) == lm2(*args, "-", stdin="say\nthis") == lm2(*args, "--prompt-file", "-", stdin="say\nthis") == want
    assert lm2(*args, "-p", "say this").out != want.out


def test_json(lm2, tiny):
    result = as_json(lm2("generate", tiny, "-p", "hello", *FEW, "--seed", "7", "--json"))
    text = lm2("generate", tiny, "-p", "hello", *FEW, "--seed", "7").out
    assert text == result["text"] + "\n" and len(result["tokens"]) == 5 and result["finish"] == "length"
    counts = {k: result[k] for k in ("prompt_tokens", "context_tokens", "tokens_written", "window_tokens", "window", "seed")}
    assert counts == {"prompt_tokens": 5, "context_tokens": 0, "tokens_written": 0, "window_tokens": 10, "window": 64, "seed": 7}
    assert result["model"] == "tiny" and len(result["fingerprint"]) == 64 and result["state_bytes"] == 2 * 72 * 32 * 4
    assert result["prefill_seconds"] > 0 and result["decode_seconds"] > 0


def test_seed_that_was_drawn_can_be_given(lm2, tiny):
    first = as_json(lm2("generate", tiny, "-p", "x", *FEW, "--json"))
    again = as_json(lm2("generate", tiny, "-p", "x", *FEW, "--json", "--seed", first["seed"]))
    assert again["tokens"] == first["tokens"]
    shown = lm2("generate", tiny, "-p", "x", *FEW)
    seed = shown.err.removeprefix("seed ").strip()
    assert lm2("generate", tiny, "-p", "x", *FEW, "--seed", seed).out == shown.out


def test_context_goes_through_the_memory(lm2, tiny, tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("A line of a book.\n" * 30)
    args = ("generate", tiny, "-p", "x", *FEW, "--temp", "0", "--json")
    plain, read = as_json(lm2(*args)), as_json(lm2(*args, "--context", file))
    assert read["context_tokens"] == 540 and read["tokens_written"] >= 540 and plain["tokens_written"] == 0
    assert read["tokens"] != plain["tokens"] and read["state_bytes"] == plain["state_bytes"]
    said = lm2(*args[:-1], "--context", file, "--verbose")
    lines = said.err.splitlines()
    assert lines[0] == "24 tokens went into the memory (24 in all)" and len(said.out) > 1
    assert [line for line in lines if "memory (" in line][-1].endswith(f"({read['tokens_written']} in all)")
    assert sum("carried over into a new one" in line for line in lines) >= 540 // 64


def test_chat_uses_the_template(lm2, tiny):
    plain = as_json(lm2("generate", tiny, "-p", "hi", *FEW, "--json"))
    chat = as_json(lm2("generate", tiny, "-p", "hi", "--chat", *FEW, "--json"))
    system = as_json(lm2("generate", tiny, "-p", "hi", "--chat", "--system", "Short.", *FEW, "--json"))
    assert (plain["prompt_tokens"], chat["prompt_tokens"], system["prompt_tokens"]) == (2, 2 + 19, 2 + 19 + 16)
    lm2("generate", tiny, "-p", "hi", "--chat", "--system", "s" * 60, *FEW).fails("the system prompt has 70 tokens", "half of the window of 64", "at least 140")


def test_stop_and_end_of_text(lm2, tiny, tmp_path):
    import tiny_model

    args = ("-p", "hi", "--max-tokens", "60", "--temp", "0", "--json")
    whole = as_json(lm2("generate", tiny, *args))
    ends = tiny_model.make(tmp_path / "ends", ends=(whole["tokens"][7],))
    cut = as_json(lm2("generate", ends, *args))
    assert cut["finish"] == "stop" and cut["tokens"] == whole["tokens"][: whole["tokens"].index(whole["tokens"][7])]
    assert as_json(lm2("generate", ends, *args, "--ignore-eos"))["tokens"] == whole["tokens"]
    stop = whole["text"][4:6]
    stopped = as_json(lm2("generate", tiny, *args, "--stop", "no such text", "--stop", stop))
    assert stopped["finish"] == "stop-string" and stopped["text"] == whole["text"][: whole["text"].index(stop)]


def test_output_in_a_poor_encoding(lm2, tiny):
    """What a terminal's encoding does not have is replaced, not an error."""
    ascii_out = io.TextIOWrapper(io.BytesIO(), "ascii")
    result = lm2("generate", tiny, "-p", "x", "--max-tokens", "30", "--temp", "0", stdout=ascii_out)
    assert result.code == 0 and "?" in result.out


@pytest.mark.slow
def test_interrupt_and_broken_pipe(tiny):
    """Two processes at a time, to save their start: Ctrl-C in mid-answer, and a reader that leaves."""
    endless = ("generate", tiny, "-p", "x", "--max-tokens", "1000000", "--temp", "0.5", "--seed", "1")
    with spawn(endless) as stopped, spawn([*endless, "--json"]) as structured, spawn(endless) as unread:
        assert stopped.stdout.read(1)
        stopped.send_signal(signal.SIGINT)
        unread.stdout.read(1)
        unread.stdout.close()
        out, err = stopped.communicate(timeout=60)
        structured.send_signal(signal.SIGINT)
        text, problem = structured.communicate(timeout=60)
        assert unread.wait(60) == 1
        left = unread.stderr.read().decode()
    assert stopped.returncode == 130 and out.endswith(b"\n") and err.decode() == "seed 1\ninterrupted\n"
    assert structured.returncode == 130 and problem.decode() == "interrupted\n" and json.loads(text)["finish"] == "interrupted"
    assert left.splitlines()[1:] in ([], ["lm2: the reader of the output has gone"]), left


def test_interrupt_before_anything_happened(tiny):
    """Ctrl-C while the prompt is awaited on stdin."""
    told = (
        "import sys\n"
        "class Told:\n"
        "    real = sys.stdin.buffer\n"
        "    def read(self, n): print('waiting', file=sys.stderr, flush=True); return self.real.read(n)\n"
        "class Stdin: buffer = Told()\n"
        "sys.stdin = Stdin()"
    )
    with spawn(["generate", tiny, "-"], before=told) as process:
        assert process.stderr.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == b"interrupted", err


def test_closed_stdin(lm2, tiny):
    """As with `<&-`: a message, or none where stdin is not needed."""
    assert lm2("generate", tiny, "-p", "x", *FEW, "--temp", "0", stdin=None).code == 0
    lm2("generate", tiny, "-", *FEW, stdin=None).fails("stdin is closed")
    lm2("chat", tiny, *FEW, stdin=None).fails("stdin is closed")
