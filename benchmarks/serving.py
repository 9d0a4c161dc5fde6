"""How long a client that sends the whole transcript waits for the first token: where the memory has heard it, where it has not. How many tokens several
clients get who ask at once, beside the same requests one after another; and what a long document that is read meanwhile takes from them.

    python benchmarks/serving.py [--part first|many|reading] [--model smollm2] [--threads 1] [--repeat 3] [--turns 8] [--tokens 60] [--clients 1 4 16]
        [--each 64]

Each part starts `lm2 serve` on a free port.
first: talks for `turns` turns, then asks for one token: after the transcript as it was heard, the same again, and after a transcript that nobody heard.
Medians over `repeat` conversations that differ in their first message.
many: `clients` ask at once for `each` tokens (fewer where an answer ends), as a stream, each in a conversation of its own; then the same is asked one after
another. The two by turns, `repeat` times, the order reversed every time. Tokens a second, prompts included, by the wall's clock and by the processor time of
the server; the ratios are medians of those of single rounds. And the seconds until the first word of an answer.
reading: the last of `clients` ask, with and without a text of 100,000 tokens that a session reads meanwhile, by turns; a reading that ends is begun again. By
the wall, and by the server's processor time, of which a processor that has nothing else to do gives as much to the server as the wall's clock says.
"""

import argparse
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

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


class Heard(NamedTuple):
    """An answer that came as a stream: its text, tokens of answer and prompt, seconds to the first word."""

    text: str
    tokens: int
    prompt: int
    first: float


class Round(NamedTuple):
    """What clients heard, and how long it took all of them: seconds by the wall's clock and of the server's processor time."""

    heard: list[Heard]
    wall: float
    processor: float

    def rates(self) -> tuple[float, float]:
        """Tokens a second by either clock."""
        tokens = sum(h.tokens for h in self.heard)
        return tokens / self.wall, tokens / self.processor


def message(number: int, client: int) -> list[dict]:
    """What a client asks in a round: no two the same, some 60 tokens with what the template adds."""
    text = f"Please tell me a long story about {number} towns on {client + 2} rivers, the people who live in them, and what they do on a rainy day in autumn."
    return [{"role": "user", "content": text}]


def listen(url: str, messages: list[dict], tokens: int) -> Heard:
    """Ask, and hear the answer as it comes."""
    asked = {"messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    began, first, text, usage = time.perf_counter(), 0.0, "", {}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode()), timeout=3600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            d = json.loads(line[6:])
            piece = "".join(choice["delta"].get("content") or "" for choice in d["choices"])
            first = first or (time.perf_counter() - began if piece else 0.0)
            text += piece
            usage = d.get("usage") or usage
    return Heard(text, usage["completion_tokens"], usage["prompt_tokens"], first)


def rounds(url: str, clock: Callable[[], float], clients: int, at_once: int, tokens: int, number: int) -> Round:
    """`clients` ask, `at_once` of them at a time."""
    began, before = time.perf_counter(), clock()
    with ThreadPoolExecutor(at_once) as pool:
        heard = list(pool.map(lambda client: listen(url, message(number, client), tokens), range(clients)))
    return Round(heard, time.perf_counter() - began, clock() - before)


def many(given: argparse.Namespace) -> None:
    with served(given, "--max-running", str(max(given.clients))) as (url, clock):
        rounds(url, clock, 2, 2, 4, 1)  # warm
        for clients in given.clients:
            side, one = [], []
            for number in range(2, 2 + given.repeat):
                for at_once, found in ((clients, side), (1, one))[:: 1 if number % 2 else -1]:
                    found.append(rounds(url, clock, clients, at_once, given.each, number))
            wall, processor = (statistics.median(s.rates()[i] / o.rates()[i] for s, o in zip(side, one, strict=True)) for i in (0, 1))
            same = sum(a.text == b.text for s, o in zip(side, one, strict=True) for a, b in zip(s.heard, o.heard, strict=True))
            rates = [statistics.median(r.rates()[i] for r in found) for i in (0, 1) for found in (side, one)]
            firsts = sorted(h.first for s in side for h in s.heard)
            prompts = statistics.median(h.prompt for s in side for h in s.heard)
            print(
                f"{clients} clients, prompts of {prompts:.0f} tokens, answers of {given.each}: {wall:.2f} times by the wall ({rates[0]:.1f} tokens/s, {rates[1]:.1f} one after another), "
                f"{processor:.2f} times by processor time ({rates[2]:.1f}, {rates[3]:.1f}); first word after {statistics.median(firsts):.2f} s, "
                f"95% {firsts[max(0, -(-19 * len(firsts) // 20) - 1)]:.2f} s (alone {statistics.median(h.first for o in one for h in o.heard):.2f}); "
                f"{same} of {clients * given.repeat} answers equal; {given.repeat} rounds",
                flush=True,
            )


@contextmanager
def document(url: str) -> Iterator[Callable[[], int]]:
    """A session that reads 100,000 tokens, again and again; gives how often that ended."""
    from common import long_text

    def post(path: str, body: dict) -> dict:
        with urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode()), timeout=36000) as answer:
            return json.loads(answer.read())

    text, ended = long_text(), []
    body = json.dumps({"text": text, "title": "topics"}).encode()
    host = url.removeprefix("http://")
    session = post("/v1/sessions", {})["id"]
    stop = threading.Event()
    held: list[http.client.HTTPConnection] = []

    def read() -> None:
        while not stop.is_set():
            held.append(http.client.HTTPConnection(host, timeout=36000))
            with suppress(OSError, http.client.HTTPException):
                held[-1].request("POST", f"/v1/sessions/{session}/read", body)
                answer = held[-1].getresponse()
                if answer.status != 200:
                    raise RuntimeError(f"the document was refused: {answer.read()[:300]!r}")
                ended.append(answer.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(2)  # until it is read
    try:
        yield lambda: len(ended)
    finally:
        stop.set()
        held[-1].sock.shutdown(socket.SHUT_RDWR)
        reader.join()
        time.sleep(2)  # the server sees that the client left


def reading(given: argparse.Namespace) -> None:
    clients = given.clients[-1]
    with served(given, "--max-running", str(clients + 1)) as (url, clock):
        rounds(url, clock, 2, 2, 4, 1)  # warm
        quiet, beside, ended = [], [], 0
        for number in range(2, 2 + given.repeat):
            quiet.append(rounds(url, clock, clients, clients, given.each, number))
            with document(url) as over:
                beside.append(rounds(url, clock, clients, clients, given.each, number))
                ended += over()
        ratio, processor = (statistics.median(b.rates()[i] / q.rates()[i] for b, q in zip(beside, quiet, strict=True)) for i in (0, 1))
        same = sum(a.text == b.text for s, o in zip(quiet, beside, strict=True) for a, b in zip(s.heard, o.heard, strict=True))
        firsts = [sorted(h.first for r in found for h in r.heard) for found in (quiet, beside)]
        print(
            f"{clients} clients, answers of {given.each}, while a document of 100,000 tokens is read: {ratio:.2f} of the tokens a second that they get without, by the wall, "
            f"{processor:.2f} by processor time, the document's included (by the wall {statistics.median(b.rates()[0] for b in beside):.1f}, {statistics.median(q.rates()[0] for q in quiet):.1f}); first word after "
            f"{statistics.median(firsts[1]):.2f} s ({statistics.median(firsts[0]):.2f}); {same} of {clients * given.repeat} answers equal; {given.repeat} rounds, "
            f"the document ended {ended} times"
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
            url = ""
            for line in server.stderr:  # a library may be built before
                url = found[0] if (found := re.search(r"http://\S+?(?=,)", line)) else url
                if "ready" in line:
                    break
            else:
                sys.exit("the server did not start")
            process = psutil.Process(server.pid)
            yield url, lambda: sum(process.cpu_times()[:2])
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=("first", "many", "reading"), action="append")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    for name, value in (("turns", 8), ("tokens", 60), ("threads", 1), ("repeat", 3), ("each", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    for part in given.part or ("first", "many", "reading"):
        {"first": first, "many": many, "reading": reading}[part](given)


if __name__ == "__main__":
    main()
