"""How long a client that sends the whole transcript waits for the first token: where the memory has heard it, where it has not.

    python benchmarks/serving.py [--model smollm2] [--turns 8] [--tokens 60] [--threads 1] [--repeat 3]

Starts `lm2 serve` on a free port, talks for `turns` turns, then asks for one token: after the transcript as it was heard, the same again, and after
a transcript that nobody heard. Medians over `repeat` conversations that differ in their first message.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request

QUESTIONS = ("What is the capital of France?", "Tell me about its river.", "Who painted the Mona Lisa?", "Why is the sky blue?", "How do rainbows form?",
             "What is a prime number?", "Name three fruits.", "What is iron?")  # fmt: skip


def ask(url: str, messages: list[dict], tokens: int) -> tuple[str, str, dict, float]:
    """The answer, x-lm2-reuse, usage and seconds of a chat completion."""
    body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": tokens}).encode()
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body)) as answer:
        d = json.loads(answer.read())
        return d["choices"][0]["message"]["content"], answer.headers["x-lm2-reuse"], d["usage"], time.perf_counter() - began


def measure(url: str, turns: int, tokens: int, number: int) -> list[tuple[str, str, dict, float]]:
    """(what, reuse, usage, seconds) of the three requests after one conversation."""
    said: list[dict] = []
    for turn in range(turns):
        said.append({"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)] + (f" ({number})" if not turn else "")})
        said.append({"role": "assistant", "content": ask(url, said, tokens)[0]})
    asked = [*said, {"role": "user", "content": "Thank you."}]
    new = [{"role": "user", "content": f"Hello, number {number}."}, {"role": "assistant", "content": "Hi."}, *asked]
    return [(what, *ask(url, messages, 1)[1:]) for what, messages in (("heard", asked), ("asked again", asked), ("never heard", new))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    for name, value in (("turns", 8), ("tokens", 60), ("threads", 1), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    start = "from lm2.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", given.model, "--port", "0", "--threads", str(given.threads)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = re.search(r"http://\S+?(?=,)", server.stderr.readline())[0]
            assert "ready" in server.stderr.readline()
            found = [row for number in range(given.repeat) for row in measure(url, given.turns, given.tokens, number)]
        finally:
            server.terminate()
    for what in dict.fromkeys(row[0] for row in found):
        rows = [row for row in found if row[0] == what]
        prompt, cached = rows[-1][2]["prompt_tokens"], rows[-1][2]["prompt_tokens_details"]["cached_tokens"]
        seconds = statistics.median(row[3] for row in rows)
        print(f"{what}: x-lm2-reuse {rows[-1][1]}, {prompt} tokens of prompt, {cached} cached, {seconds:.2f} s (median of {len(rows)})")


if __name__ == "__main__":
    main()
