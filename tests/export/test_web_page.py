"""The page of `lm2 export --web` in a headless Chromium, and its module on WebGPU by SwiftShader: the answers are a session's own, files go both ways, bad ones
change nothing. Skips without a browser or onnxruntime-web (web_kit.py says where it is looked for)."""

import json
import time

import browser_kit
import pytest
import web_kit

pytest.importorskip("onnx")
from lm2 import Session
from lm2.export.web import export_web
from lm2.models.home import shipped_model
from lm2.runtime.loading import load

FIRST = ("Mary went to the kitchen.", "John moved to the garden.", "Where is Mary?", "Sandra took the milk there. Sandra went to the office.", "Where is John?")
LATER = ("Daniel went to the bathroom. Daniel picked up the football.", "Where is Mary?", "Mary journeyed to the hallway.", "Where is Mary?", "Where is Daniel?")
WEBGPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan", "--use-webgpu-adapter=swiftshader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    package = web_kit.ort_web()
    if package is None:
        pytest.skip("there is no onnxruntime-web: npm install --ignore-scripts onnxruntime-web@1.30.0 in .cache/node, or name its folder in LM2_ORT_WEB")
    out = tmp_path_factory.mktemp("web") / "page"
    export_web(shipped_model("lm2-tiny"), out, package)
    return out


@pytest.fixture(scope="module")
def asked():
    return []


@pytest.fixture(scope="module")
def url(folder, asked):
    with web_kit.served(folder, asked=asked) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if browser_kit.program() is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in LM2_CHROMIUM")
    made = browser_kit.Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def model():
    return load("lm2-tiny", backend="torch", device="cpu", threads=1)


def ready(page):
    page.wait("document.querySelector('#status').innerText.includes('is ready') && !document.querySelector('#new').disabled")
    return page


def say(page, message):
    page.js("document.querySelector('#status').innerText = ''; document.querySelector('#message').focus()")
    page.type(message)
    page.press("Enter")
    page.wait("document.querySelector('#status').innerText === 'answered' && !document.querySelector('#new').disabled")
    return page.js("[...document.querySelectorAll('#log article.assistant p')].pop().innerText")


def downloaded(page, to):
    before = set(to.glob("*.lm2s"))
    page.js("document.querySelector('#download').click()")
    end = time.monotonic() + 60
    while not (files := set(to.glob("*.lm2s")) - before):
        assert time.monotonic() < end
        time.sleep(0.05)
    return files.pop()


def status(page, text):
    page.wait(f"document.querySelector('#status').innerText.includes({text!r}) && !document.querySelector('#new').disabled")


def test_a_conversation_from_both_sides(browser, url, asked, folder, model, tmp_path):
    """Answers, a reload, files out and in, undo, bad files: all of it on one page, since each page loads the model."""
    page, session = ready(browser.page(url)), Session(model)
    page.downloads(tmp_path)
    for message in FIRST:
        assert say(page, message) == session.say(message), message
    assert "carried over" in page.text("#notes"), "the control: a window was left"

    page.call("Page.reload")  # IndexedDB is what is left
    ready(page)
    assert page.text("#log").count("You") == len(FIRST) and "kitchen" in page.text("#log")
    file = downloaded(page, tmp_path)  # right after a slide
    in_python = Session.restore(model, file)
    for message in LATER:
        assert say(page, message) == in_python.say(message) == session.say(message), message

    saved = tmp_path / "from-python.lm2s"
    other = Session(model)
    for message in FIRST[:3]:  # between two folds
        other.say(message)
    other.save(saved)
    page.choose("#upload", saved)
    status(page, "from-python.lm2s is open")
    for message in LATER:
        assert say(page, message) == other.say(message), message
    page.js("document.querySelector('#undo').click()")
    status(page, "taken back")
    other.undo()
    assert say(page, "Where is John?") == other.say("Where is John?")

    shown = page.text("#log")
    data = saved.read_bytes()
    for name, content, words in (
        ("damaged", data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], "sha256"), ("cut", data[: len(data) // 2], "cut off"), ("longer", data + b"0", "bytes left over"),
        ("foreign", b"no session at all" * 100, "not a session file"), ("empty", b"", "0 bytes"), ("other", other_models(tmp_path), "was saved with model lm2-babi"),
    ):  # fmt: skip
        bad = tmp_path / f"{name}.lm2s"
        bad.write_bytes(content)
        page.choose("#upload", bad)
        page.wait("!document.querySelector('#error').hidden && !document.querySelector('#new').disabled")
        said = page.text("#error")
        assert f"{name}.lm2s" in said and words in said and "\n" not in said, said
        assert page.text("#log") == shown, "the conversation in hand is as it was"
        page.js("document.querySelector('#error').hidden = true")
    assert page.js("document.querySelectorAll('#sessions li').length") == 2, "nothing was kept of them"
    assert say(page, "Where is Mary?") == other.say("Where is Mary?")
    assert page.said == []
    assert all(one.startswith(url) or one.startswith("blob:") for one in page.asked), page.asked
    names = {path.partition("?")[0].lstrip("/") or "index.html" for path in asked}
    assert "ort/ort-wasm-simd-threaded.wasm" in names and all((folder / name).is_file() for name in names), names


def other_models(tmp_path):
    """A session file of lm2-babi."""
    session = Session(load("lm2-babi", backend="torch", device="cpu", threads=1))
    session.say("Mary went to the kitchen.")
    session.save(tmp_path / "babi.lm2s")
    return (tmp_path / "babi.lm2s").read_bytes()


def test_two_tabs_of_one_conversation(browser, url):
    """The one that saves last is told, and the other's turn is not written over."""
    first = ready(browser.page(url))
    say(first, FIRST[0])
    found = first.js("""(async () => {
      const { Store } = await import(new URL('lm2/index.js', location.href));
      const store = await Store.open(), [{ key, about }] = await store.list(), { bytes, revision } = await store.get(key);
      return store.put(key, bytes, about, revision);
    })()""")
    assert found == 2
    first.js("document.querySelector('#status').innerText = ''; document.querySelector('#message').focus()")
    first.type(FIRST[1])
    first.press("Enter")
    first.wait("!document.querySelector('#error').hidden")
    assert "another tab" in first.text("#error") and "garden" in first.text("#log"), "what was said is still on the page"


@pytest.mark.slow
def test_webgpu_says_the_same(url, model):
    """Three chunks of lm2-tiny, token for token. Shaders are compiled by a CPU: minutes."""
    if browser_kit.program() is None:
        pytest.skip("there is no Chromium")
    browser, session, wanted = browser_kit.Browser(WEBGPU), Session(model), []
    for message in (*FIRST, *LATER, *FIRST):
        session.say(message)
        wanted.append(list(session.reply.tokens))
    assert session.at.seen > 2 * 64, "into the third chunk"
    try:
        page = browser.page(url + "models.json")
        page.js("globalThis.said = []; globalThis.failed = ''")
        page.js("""(async () => {
          const ort = await import('/ort/ort.webgpu.bundle.min.mjs');
          Object.assign(ort.env.wasm, { wasmPaths: { wasm: '/ort/ort-wasm-simd-threaded.asyncify.wasm' }, numThreads: 1 });
          const { load, Session } = await import('/lm2/index.js');
          globalThis.session = new Session(await load(new URL('/models/lm2-tiny/', location), ort, { device: 'webgpu' }));
        })()""")
        messages = json.dumps((*FIRST, *LATER, *FIRST))
        page.js(f"(async () => {{ for (const m of {messages}) {{ await session.say(m); said.push(session.reply.tokens); }} }})().catch((e) => {{ failed = e.message; }}); 0")
        end = time.monotonic() + 540
        while len(page.js("said")) < len(wanted) and not page.js("failed"):
            assert time.monotonic() < end, page.js("said")
            time.sleep(1)
        assert page.js("failed") == "" and page.js("said") == wanted
    finally:
        browser.close()
