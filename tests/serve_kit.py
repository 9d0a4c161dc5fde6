"""A real server for tests: uvicorn on a free port, in a thread, over a model that is loaded already."""

import json
import socket
import threading
from contextlib import contextmanager

import command_line


@contextmanager
def served(model, keys=(), store=None, window=None, shared=False, **limits):
    """A server over `model`; yields it, with `.url` and `.service`. It has saved everything when the block ends."""
    from lm2.runtime.serve.limits import Limits
    from lm2.runtime.serve.owners import Owners
    from lm2.runtime.serve.server import prepared, serve_on
    from lm2.runtime.serve.store import Store

    load = model if callable(model) else lambda: model
    kept = None if store is None else Store(store, limits.pop("store_bytes", 1 << 30), shared)
    server = prepared(load, "127.0.0.1", 0, Owners(keys), Limits(**limits), kept, window)
    failed = []

    def run():
        try:
            serve_on(server)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        if not callable(model):
            command_line.wait_for(lambda: server.service.ready or failed, "the server")
        yield server
    finally:
        server.handle_exit(15, None)
        thread.join(60)
        assert not thread.is_alive() and not failed, failed


class Letters:
    """A backend whose logits leave lower-case letters and blanks alone, for a byte tokenizer: what is drawn is text that is tokenised again as it was made."""

    def __init__(self, backend):
        self.real = backend

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, window = self.real.extend(tokens, window, all_logits)
        return letters(logits), window

    def step(self, tokens, windows):
        logits, windows = self.real.step(tokens, windows)
        return letters(logits), windows


def letters(logits):
    kept = logits.copy()
    kept[..., [i for i in range(kept.shape[-1]) if i != 32 and not 97 <= i <= 122]] = float("-inf")
    return kept


LONG = "d" * 2000  # a letter is a token


class Watched(Letters):
    """A backend that notes what it was fed, in order: (buffers, tokens), and how many windows at once. It stops once before it is fed what `stops(tokens, window)` tells, by default a piece
    of LONG, until `go`; `seen` says that it is there."""

    def __init__(self, backend, stops=lambda ids, window: ids.count(b"d") > 8):
        super().__init__(backend)
        self.stops, self.fed, self.steps, self.seen, self.go = stops, [], [], threading.Event(), threading.Event()

    def extend(self, tokens, window, all_logits=False):
        self.note(tokens.ravel(), window)
        return super().extend(tokens, window, all_logits)

    def step(self, tokens, windows):
        for token, window in zip(tokens, windows, strict=True):
            self.note([token], window)
        self.steps.append(len(tokens))
        return super().step(tokens, windows)

    def note(self, tokens, window):
        ids = bytes(int(t) % 256 for t in tokens)
        if not self.seen.is_set() and self.stops(ids, window):
            self.seen.set()
            assert self.go.wait(60)
        self.fed.append((window.keys.data_ptr() if hasattr(window, "keys") else id(window.buffers), ids))

    def at(self, wanted):
        """Places of what was fed that has `wanted` in it, or of single tokens for 1."""
        return [i for i, (_, ids) in enumerate(self.fed) if (len(ids) == 1 if wanted == 1 else wanted in ids)]


class Web:
    """Plain requests to a server, with a key."""

    def __init__(self, server, key=None):
        import httpx2

        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.client = httpx2.Client(base_url=server.url, headers=headers, timeout=60)

    def __call__(self, method, path, body=None, raw=None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return self.client.request(method, path, content=content, headers=headers)

    def chat(self, *said, **fields):
        """A chat completion of a transcript: user, assistant, user, ...; the answer's object and its header x-lm2-reuse."""
        answer = self("POST", "/v1/chat/completions", {"messages": transcript(*said), **fields})
        assert answer.status_code == 200, answer.text
        return answer.json(), answer.headers.get("x-lm2-reuse")

    def say(self, *said, **fields):
        """The text of `chat`."""
        return self.chat(*said, **fields)[0]["choices"][0]["message"]["content"]

    def events(self, path, body, **headers):
        """The data of every event of a stream, [DONE] left out, and the answer."""
        answer = self("POST", path, {**body, "stream": True}, **headers)
        assert answer.status_code == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"], answer


def transcript(*said):
    """Messages of users and assistants in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def refused(answer, status, *words):
    """It must be a refusal in OpenAI's shape that has every word; returns it."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    for word in words:
        assert word in str(error), f"{word!r} is not in {error}"
    return error


@contextmanager
def asked(*requests):
    """Requests sent from threads of their own, in this order: each a function of nothing. Yields the answers, all there when the block has ended."""
    answers = [None] * len(requests)

    def run(i):
        answers[i] = requests[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


HELLO = {"messages": transcript("Where is Mary?")}


class Stream:
    """A request whose answer is read by hand, or not at all."""

    def __init__(self, running, stream=True, size=None, **fields):
        body = json.dumps({**HELLO, "stream": stream, **fields}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.socket = raw_socket(running, head + body, size)

    def close(self):
        self.socket.close()


def raw_socket(running, said, size=None):
    one = socket.socket()
    if size:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    one.settimeout(30)
    one.connect(running.listening.getsockname()[:2])
    one.sendall(said)
    return one
