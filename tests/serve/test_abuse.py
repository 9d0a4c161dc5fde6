"""What nobody sends by mistake: each gets a clear status in good time, says nothing of the inside, and what was there before is there after it.

Large bodies, clients that send half or never read, and files that are no sessions are test_guard.py's and test_sessions.py's.
"""

import json
import shutil
import subprocess
import threading
import time

import psutil
import pytest
from serve_kit import HELLO, Web, raw_socket, refused, served, transcript

KEY = "ada-key"
SOON = 10  # seconds of the processor, this client's included: what is refused is not worked on


@pytest.fixture(scope="module")
def closed(model, tmp_path_factory):
    with served(model, keys=(KEY,), store=tmp_path_factory.mktemp("abuse")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_lost(closed):
    """Before and after each: a session answers from what it heard, nothing runs or waits, no thread and no connection is left over."""
    web = Web(closed, KEY)
    own = web("POST", "/v1/sessions", {}).json()["id"]
    assert web.say("Mary went to the kitchen.", session_id=own)
    process, threads = psutil.Process(), threading.active_count()
    began, files = time.process_time(), len(process.open_files())
    yield
    assert time.process_time() - began < SOON
    assert web.say("Where is Mary?", session_id=own) == "kitchen."
    scheduler = closed.service.scheduler

    def left():
        """What still runs, waits or is open beyond what there was: a request's end is seen by its client a moment before it is over here."""
        return [*scheduler.running, *range(scheduler.waiting), *range(threading.active_count() - threads), *range(len(process.open_files()) - files)]

    for _ in range(100):
        if not left():
            break
        time.sleep(0.05)
    assert not left()
    web("DELETE", f"/v1/sessions/{own}")
    web.client.close()


def raw(running, head, body=b""):
    """The first line and the body of the answer to these bytes; empty where the server only closed."""
    with raw_socket(running, head + body) as one:
        text = b""
        try:
            while part := one.recv(65536):
                text += part
                if b"\r\n\r\n" in text and b"\r\nConnection: close" not in text and b"\r\nconnection: close" not in text:
                    break
        except ConnectionResetError:
            pass
    return text.partition(b"\r\n")[0].decode(), text.partition(b"\r\n\r\n")[2]


AUTH = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n", "400"),
        (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"X: a\r\n" * 100_000 + b"\r\n", "400"),
        (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + AUTH + b"\r\n", "400"),
        (b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer " + b"k" * 60_000 + b"\r\nHost: localhost\r\n\r\n", "401"),
        (b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\nHost: localhost\r\n\r\n", "401"),
        (b"GET /v1/sessions/%00%ff%c3%28 HTTP/1.1\r\n" + AUTH + b"\r\n", "404"),
        (b"GET /page/../../../../etc/passwd HTTP/1.1\r\n" + AUTH + b"\r\n", "404"),
        (b"GET /page/%2e%2e/page.py HTTP/1.1\r\n" + AUTH + b"\r\n", "404"),
        (b"GET //etc/passwd HTTP/1.1\r\n" + AUTH + b"\r\n", "404"),
        (b"GET http://169.254.169.254/latest HTTP/1.1\r\n" + AUTH + b"\r\n", "40"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: -5\r\n\r\n", "400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n", "400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"Content-Length: 99999999999999999999\r\n\r\n", "4"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
        (b"\x00" * 100 + b"\r\n\r\n", "400"),
    ],
    ids=["header", "headers", "path", "key", "key-bytes", "bytes", "up", "up-percent", "slashes", "absolute", "negative", "twice", "chunk", "vast", "tls", "zeros"],
)
def test_heads(closed, head, status):
    line, body = raw(closed, head)
    assert line.startswith(f"HTTP/1.1 {status}"), (line, body[:200])
    assert b"Traceback" not in body and b"site-packages" not in body and b"root:" not in body, body[:500]


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":' + b"[" * 3_000_000,
        b'{"messages":' + b'{"a":' * 500_000 + b"1" + b"}" * 500_000 + b"}",
        b'{"messages": [' + b"[],"[:3] * 1_000_000 + b"[]]}",
        b'{"messages": [' + b'{"role":"user","content":"x"},' * 100_000 + b'{"role":"user","content":"x"}]}',
        b'{"messages": ' + b"9" * 3_000_000 + b"}",
        b'{"messages": "' + b"\\ud83d" * 500_000 + b'"}',
        b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b"\xff\xfe" + '{"messages": []}'.encode("utf-16-le"),
        b"\x1f\x8b\x08\x00" + b"\0" * 1000,
        json.dumps({**HELLO, "stop": ["x" * 100_000] * 30}).encode(),
        json.dumps({**HELLO, "logit_bias": {str(i): 1 for i in range(100_000)}}).encode(),
    ],
    ids=["brackets", "objects", "lists", "messages", "digits", "surrogates", "utf8", "utf16", "gzip", "stops", "fields"],
)
def test_bodies(closed, body):
    answer = Web(closed, KEY)("POST", "/v1/chat/completions", raw=body)
    refused(answer, answer.status_code)
    assert 400 <= answer.status_code < 500 and len(answer.content) < 1000


@pytest.mark.parametrize("kind", ["sessions", "responses", "conversations"])
def test_ids_of_every_kind_are_no_paths(closed, kind):
    web = Web(closed, KEY)
    for trick in ("..", "%2e%2e%2fstore.lock", "store.lock", "open", "*", "~", "sess_" + "0" * 32 + ".lm2s", "%252e%252e", "C:%5Cx", "resp_" + "g" * 32):
        assert web("GET", f"/v1/{kind}/{trick}").status_code in (404, 405)
        assert web("DELETE", f"/v1/{kind}/{trick}").status_code in (404, 405)
    refused(web("POST", "/v1/responses", {"input": "x", "previous_response_id": "../../open/x"}), 404)
    refused(web("POST", "/v1/responses", {"input": "x", "conversation": "../../open/x"}), 404)
    refused(web("POST", "/v1/chat/completions", {"messages": transcript("x"), "session_id": "../x"}), 404)


def test_curl(closed, tmp_path):
    """The program that people try first: without a key, and with ten megabytes."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")

    def curl(*args):
        done = subprocess.run(["curl", "-s", "-m", "30", "-w", "\n%{http_code}", *args], capture_output=True, text=True, timeout=60)
        return done.stdout.rsplit("\n", 1)

    body, status = curl(f"{closed.url}/v1/chat/completions", "-d", json.dumps(HELLO))
    assert status == "401" and json.loads(body)["error"]["code"] == "missing_api_key"
    (tmp_path / "big").write_bytes(b'{"messages": "' + b"x" * (10 << 20) + b'"}')
    body, status = curl(f"{closed.url}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}", "--data-binary", f"@{tmp_path / 'big'}")
    assert status == "413" and "body_too_large" in body
    assert curl(f"{closed.url}/health")[1] == "200" and curl(f"{closed.url}/")[1] == "200"
    assert curl("--path-as-is", f"{closed.url}/page/../../../etc/passwd")[1] == "401"


def test_many_connections_that_say_nothing(closed):
    held = [raw_socket(closed, b"") for _ in range(200)]
    assert Web(closed, KEY)("GET", "/v1/models").status_code == 200
    for one in held:
        one.close()
