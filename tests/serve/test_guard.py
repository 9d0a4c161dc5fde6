"""Who is let in, and that one client can neither hold nor break what others use."""

import re
import socket
import threading
from dataclasses import replace

import command_line
import pytest
from serve_kit import HELLO, Stream, Web, raw_socket, refused, served, transcript

from lm2.runtime.serve.owners import read_keys


@pytest.fixture(scope="module")
def closed(model):
    with served(model, keys=("ada-key", "bob-key"), body=1 << 20) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/metrics", "/props", "/nothing"])
def test_a_key_is_asked_for(closed, path):
    method = "POST" if "chat" in path else "GET"
    refused(Web(closed)(method, path, HELLO), 401, "Bearer")
    refused(Web(closed, "wrong")(method, path, HELLO), 401, "not known")
    refused(Web(closed)(method, path, HELLO, authorization="Basic ada-key"), 401)
    assert Web(closed, "ada-key")(method, path, HELLO).status_code == (404 if path == "/nothing" else 200)


def test_health_needs_no_key(closed):
    assert Web(closed)("GET", "/health").json() == {"status": "ok"}


def test_while_the_model_is_loaded(model):
    go = threading.Event()

    def load():
        assert go.wait(60)
        return model

    with served(load, keys=("k",)) as running:
        try:
            command_line.wait_for(lambda: running.started, "the socket")
            answer = Web(running)("GET", "/health")
            assert answer.status_code == 503 and answer.json() == {"status": "loading"}
            assert refused(Web(running, "k")("POST", "/v1/chat/completions", HELLO), 503, "loaded")["code"] == "loading"
        finally:
            go.set()
        command_line.wait_for(lambda: Web(running)("GET", "/health").status_code == 200, "the model")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(closed, chunked):
    big = b'{"messages": "' + b"x" * (10 << 20) + b'"}'
    raw = iter([big[i : i + 65536] for i in range(0, len(big), 65536)]) if chunked else big
    try:
        refused(Web(closed, "ada-key")("POST", "/v1/chat/completions", raw=raw), 413, str(1 << 20))
    except Exception as error:  # the server may have closed before all of it was sent
        assert "413" in str(error) or re.search("Write|Protocol|Read|Remote", type(error).__name__), error
    assert Web(closed, "ada-key").say("Where is Mary?")


def test_a_long_message_is_refused(web):
    assert refused(web("POST", "/v1/chat/completions", {"messages": transcript("x " * (600 << 10))}), 413, "1048576")["param"] == "messages[0].content"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1@evil.example", "http://["])
def test_pages_of_others_are_refused(web, origin):
    refused(web("POST", "/v1/chat/completions", HELLO, origin=origin), 403, "origin")
    assert "access-control-allow-origin" not in web("OPTIONS", "/v1/models", origin=origin).headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
def test_pages_of_this_machine_may_ask(web, origin):
    assert web("GET", "/v1/models", origin=origin).headers["access-control-allow-origin"] == origin
    before = web("OPTIONS", "/v1/chat/completions", origin=origin, access_control_request_headers="authorization")
    assert before.status_code == 204 and before.headers["access-control-allow-headers"] == "authorization"


def test_a_name_that_leads_here_is_refused(web, closed):
    refused(web("GET", "/v1/models", host="evil.example"), 403, "localhost")
    assert web("GET", "/v1/models", host="127.0.0.2:8080").status_code == 200  # --host 127.0.0.2; no name leads to an address
    assert Web(closed, "ada-key")("GET", "/v1/models", host="my.example").status_code == 200  # there a key stands before it


def test_unknown_paths_and_methods(web):
    refused(web("GET", "/v2/models"), 404)
    answer = web("DELETE", "/v1/models")
    refused(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    refused(web("GET", "/v1/models/"), 404)


@pytest.mark.parametrize(("path", "body"), [("/health", None), ("/nothing", None), ("/v1/chat/completions", HELLO), ("/v1/chat/completions", {**HELLO, "stream": True})])
def test_no_answer_is_kept_or_guessed_at_on_its_way(web, path, body):
    headers = web("POST" if body else "GET", path, body).headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff") and headers["x-request-id"]


def test_a_full_queue_is_said(talker):
    with served(talker, queue=1, running=1, tokens=100_000) as running:
        slow = [Stream(running, max_tokens=100_000)]
        command_line.wait_for(lambda: running.service.scheduler.running, "the first request")
        slow.append(Stream(running, max_tokens=100_000))
        command_line.wait_for(lambda: running.service.scheduler.running and running.service.scheduler.waiting == 1, "two requests")
        answer = Web(running)("POST", "/v1/chat/completions", HELLO)
        assert refused(answer, 429, "wait")["code"] == "queue_full" and int(answer.headers["retry-after"]) >= 1
        slow[1].close()  # one that waits
        command_line.wait_for(lambda: running.service.scheduler.waiting == 0, "its place")
        slow[0].close()  # the one that runs
        command_line.wait_for(lambda: not running.service.scheduler.running, "the other place")
        assert Web(running).say("Hello", max_tokens=3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(talker, stream):
    with served(talker, tokens=100_000) as running:
        gone = Stream(running, stream, max_tokens=100_000)
        command_line.wait_for(lambda: running.service.scheduler.running, "the request")
        gone.close()
        command_line.wait_for(lambda: not running.service.scheduler.running, "its place")


def test_slow_and_half_open_clients_stop_nobody(talker):
    with served(talker, tokens=100_000) as running:
        running.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # else the system would hold all of the answer
        half = [raw_socket(running, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{") for _ in range(4)]
        half += [raw_socket(running, b"GET /v1/mod") for _ in range(4)]
        unread = Stream(running, max_tokens=200, logprobs=True, top_logprobs=20, size=4096)  # never reads its answer
        assert Web(running).say("Hello", max_tokens=5)  # after the other's, which is computed in full
        for one in (*half, unread):
            one.close()


def test_a_body_that_does_not_come(talker):
    with served(talker, patience=0.2) as running:
        one = raw_socket(running, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
        assert b" 408 " in one.recv(4096)
        one.close()


def test_a_head_that_does_not_come(model):
    """Nor the next one on a connection that was used, whose head's first bytes end the wait between requests."""
    with served(model, patience=0.3) as running:
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for said in (b"", b"GET /hea", whole + b"GET /hea"):
            one = raw_socket(running, said)
            text = b""
            while part := one.recv(4096):  # ends: the server closes
                text += part
                if text.endswith(b"}"):
                    one.sendall(b"l")
            assert text.count(b"200 OK") == said.count(whole)
            one.close()


def test_a_stream_that_waits_shows_signs_of_life(talker):
    with served(talker, ping=0.05, running=1, tokens=100_000) as running:
        first = Stream(running, max_tokens=100_000)
        command_line.wait_for(lambda: running.service.scheduler.running, "the request")
        second = Stream(running, max_tokens=3)
        text = b""
        while b": ping\n\n" not in text:
            text += second.socket.recv(4096)
        first.close()
        while b"[DONE]" not in text:
            text += second.socket.recv(4096)
        second.close()


def test_an_error_nobody_meant_says_nothing_of_the_inside(talker, caplog):
    class Broken:
        def __getattr__(self, name):
            return getattr(talker.backend, name)

        def extend(self, *args, **more):
            raise RuntimeError("secret inside")

    with served(replace(talker, backend=Broken())) as running:
        web = Web(running)
        error = refused(web("POST", "/v1/chat/completions", HELLO), 500, "RuntimeError")
        assert "secret" not in str(error) and "secret inside" in caplog.text
        refused(web("POST", "/v1/chat/completions", HELLO), 500)  # and goes on


def test_the_end_comes_at_a_whole_turn(talker):
    with served(talker, tokens=100_000) as running:
        stream = Stream(running, max_tokens=100_000)
        text = b""
        while text.count(b"data: ") < 5:
            text += stream.socket.recv(4096)
        running.handle_exit(15, None)
        while part := stream.socket.recv(65536):
            text += part
        stream.close()
    assert b"stopping" in text and b"[DONE]" not in text


def test_keys_of_a_file(tmp_path):
    from lm2.models.errors import PromptError

    file = tmp_path / "keys"
    file.write_text("# ours\n\nada-key\n  bob-key \n")
    assert read_keys(file) == ["ada-key", "bob-key"]
    file.write_bytes(b"\xef\xbb\xbf# ours\r\n\r\nada-key\r\n")  # as editors of Windows write it
    assert read_keys(file) == ["ada-key"]
    for content in (b"", b"# none\n", b"a b\n", b"\xff\n", b"\xef\xbb\xbf", "ä\n".encode()):
        file.write_bytes(content)
        with pytest.raises(PromptError, match="keys"):
            read_keys(file)
    with pytest.raises(PromptError, match="missing"):
        read_keys(tmp_path / "missing")
