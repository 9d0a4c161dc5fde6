"""How long a client that sends the whole transcript waits for the first token: where the memory has heard it, where it has not. And how many tokens several
clients get who ask at once.

    python benchmarks/serving.py [--part first|many] [--model smollm2] [--threads 1] [--repeat 3] [--turns 8] [--tokens 60] [--clients 1 4 16] [--each 64]
        [--processor]

first: starts `lm2 serve` on a free port, talks for `turns` turns, then asks for one token: after the transcript as it was heard, the same again, and after
a transcript that nobody heard. Medians over `repeat` conversations that differ in their first message.
many: `clients` ask at once for `each` tokens (fewer where an answer ends), of a server that answers as many at a time, and of one that answers one at a time
(--max-running 1); the two by turns, `repeat` times. Seconds are from the first request to the last answer, prompts included; with --processor, of the
server's processor time, for machines that have other work.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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


def first(given: argparse.Namespace) -> None:
    with served(given) as (url, _):
        found = [row for number in range(given.repeat) for row in measure(url, given.turns, given.tokens, number)]
    for what in dict.fromkeys(row[0] for row in found):
        rows = [row for row in found if row[0] == what]
        prompt, cached = rows[-1][2]["prompt_tokens"], rows[-1][2]["prompt_tokens_details"]["cached_tokens"]
        seconds = statistics.median(row[3] for row in rows)
        print(f"{what}: x-lm2-reuse {rows[-1][1]}, {prompt} tokens of prompt, {cached} cached, {seconds:.2f} s (median of {len(rows)})")


def at_once(url: str, clients: int, tokens: int, number: int, clock: Callable[[], float]) -> tuple[float, list[str]]:
    """Tokens a second, by `clock`, of so many clients who ask at once, and their answers."""
    messages = [[{"role": "user", "content": f"Tell me a long story about {number} towns and {client} rivers."}] for client in range(clients)]
    began = clock()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda said: ask(url, said, tokens), messages))
    return sum(usage["completion_tokens"] for _, _, usage, _ in answers) / (clock() - began), [text for text, *_ in answers]


def many(given: argparse.Namespace) -> None:
    with served(given, "--max-running", str(max(given.clients))) as together, served(given, "--max-running", "1") as alone:
        for url, clock in (together, alone):
            at_once(url, 1, 4, 0, clock)  # warm
        for clients in given.clients:
            rates: tuple[list[float], list[float]] = ([], [])
            same = 0
            for number in range(2, 2 + given.repeat):
                texts = []
                for (url, clock), found in zip((together, alone), rates, strict=True):
                    rate, said = at_once(url, clients, given.each, number, clock if given.processor else time.perf_counter)
                    found.append(rate)
                    texts.append(said)
                same += sum(a == b for a, b in zip(*texts, strict=True))
            side, one = (statistics.median(found) for found in rates)
            print(
                f"{clients} clients: {side:.1f} tokens/s side by side, {one:.1f} one at a time, {side / one:.2f} times (medians of {given.repeat}); "
                f"{same} of {clients * given.repeat} answers equal",
                flush=True,
            )


@contextmanager
def served(given: argparse.Namespace, *more: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """The address of a server that is ready, and a clock of its processor time in seconds."""
    import psutil

    start = "from lm2.cli import main; main()"
    command = [sys.executable, "-c", start, "serve", given.model, "--port", "0", "--threads", str(given.threads), *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = re.search(r"http://\S+?(?=,)", server.stderr.readline())[0]
            assert "ready" in server.stderr.readline()
            process = psutil.Process(server.pid)
            yield url, lambda: sum(process.cpu_times()[:2])
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("first", "many"), action="append")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    for name, value in (("turns", 8), ("tokens", 60), ("threads", 1), ("repeat", 3), ("each", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    for part in given.part or ("first", "many"):
        {"first": first, "many": many}[part](given)


if __name__ == "__main__":
    main()
