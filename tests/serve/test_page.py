"""The chat page in a headless Chromium: by keyboard alone, said to screen readers, nothing from elsewhere, and no console message. Skips without a browser."""

import re
import time

import browser_kit
import pytest
from serve_kit import Web, served

from lm2.runtime.session.session import Session


@pytest.fixture(scope="module")
def browser():
    if browser_kit.program() is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in LM2_CHROMIUM")
    made = browser_kit.Browser()
    yield made
    made.close()


@pytest.fixture
def at(browser, server):
    """Opens the page of the shared server."""
    return lambda running=server, **more: ready(browser.page(running.url, **more))


def ready(page):
    page.wait("document.querySelector('#model').innerText.includes('lm2-tiny')")
    page.wait("document.activeElement.id === 'message'")
    return page


def say(page, message):
    page.type(message)
    page.press("Enter")
    return answered(page)


def answered(page):
    page.wait("document.querySelector('#status').innerText === 'answered'")
    page.wait("!document.querySelector('#undo').disabled")
    return page.js("[...document.querySelectorAll('#log article.assistant p:not(.cited)')].pop().innerText")


def status(page, text):
    page.wait(f"document.querySelector('#status').innerText.includes({text!r})")


def test_by_keyboard_alone(at, server, model, tmp_path):
    """Said, asked, forked, undone, forgotten, deleted, with Tab, Enter and blanks only; the answers are a session's own."""
    page, session = at(), Session(model)
    for message in ("Mary went to the kitchen.", "John moved to the garden.", "Where is Mary?"):
        assert say(page, message) == session.say(message)
        assert page.focused() == "message", "one goes on writing"
    assert "turn 1" in page.text("#held") and "kitchen" in page.text("#held") and "in the memory" in page.text("#numbers")
    page.js("document.querySelector('.skip').focus()")
    order = page.tab_to("message")
    tools = [name for name in order if name in ("undo", "fork", "download", "read", "delete", "log", "message")]
    assert tools == ["undo", "fork", "download", "read", "delete", "log", "message"], order

    page.js("document.querySelector('.skip').focus()")
    page.tab_to("fork")
    page.press("Enter")
    status(page, "second session")
    assert page.js("document.querySelectorAll('#sessions [aria-current]').length") == 1
    page.tab_to("undo")
    page.press(" ")
    status(page, "taken back")
    assert "Where is Mary" not in page.text("#log") and "kitchen" in page.text("#log")

    page.tab_to("message")
    page.tab_to(page.js("[...document.querySelectorAll('#held button')].find(b => b.ariaLabel === 'Forget turn 1').innerText"))
    page.js("[...document.querySelectorAll('#held button')].find(b => b.ariaLabel === 'Forget turn 1').focus()")
    page.press("Enter")
    status(page, "turn 1 is forgotten")
    assert page.focused() == "memory-title" and "kitchen" not in page.text("#log") + page.text("#held")

    before = page.js("document.querySelectorAll('#sessions li').length")
    page.tab_to("delete")
    page.press("Enter")
    status(page, "press Delete again")
    page.press("Enter")
    status(page, "is deleted")
    assert page.js("document.querySelectorAll('#sessions li').length") == before - 1
    assert page.said == []


def test_what_a_screen_reader_is_told(at):
    page = at()
    say(page, "Mary went to the kitchen.")
    told = page.tree()
    for role, name in (
        ("button", "Send"), ("button", "Stop"), ("button", "Undo"), ("button", "Fork"), ("button", "Forget turn 1"), ("button", "New session"), ("textbox", "Message"),
        ("log", "Conversation"), ("toolbar", "This session"), ("navigation", "Sessions"), ("complementary", "Memory"), ("main", ""), ("status", ""),
        ("heading", "You, turn 1"), ("heading", "Answer, turn 1"), ("list", "What it holds"),
    ):  # fmt: skip
        assert (role, name) in told, (role, name, told)
    for role, name in told:
        assert name or role not in ("button", "textbox", "link", "image", "meter", "combobox", "heading"), (role, told)
    assert page.js("document.documentElement.lang") == "en" and page.js("document.querySelector('#log').ariaBusy") == "false"


def test_nothing_from_elsewhere_and_nothing_inline(at, server, web):
    page = at()
    say(page, "Mary went to the kitchen.")
    assert page.said == [] and all(url.startswith(server.url) for url in page.asked), page.asked
    headers = web("GET", "/").headers
    rules = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'" and rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"] and headers["content-type"] == "text/html; charset=utf-8"
    page.js("document.body.insertAdjacentHTML('beforeend', '<img src=x:y onerror=\"document.title = 1\">')")
    assert page.said, "the control: what the policy forbids is complained of"


def test_text_is_text(at):
    """Markup in a message, a title or a memory is shown as it was written."""
    page = at()
    say(page, "<img src=/x onerror=alert(1)> & <b>Mary</b> went to the kitchen.")
    assert "<b>Mary</b>" in page.text("#log") and "<b>Mary</b>" in page.text("#sessions [aria-current]")
    assert page.js("document.querySelectorAll('#log img, #log b, #held b, #sessions b').length") == 0


def test_the_file_goes_out_and_in_and_a_foreign_one_does_not(at, model, tmp_path):
    page = at()
    page.downloads(tmp_path)
    say(page, "Mary went to the kitchen.")
    page.js("document.querySelector('#download').click()")
    page.wait("document.querySelector('#status').innerText.includes('downloads')")
    end = time.monotonic() + 30
    while not (files := list(tmp_path.glob("sess_*.lm2s"))):
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    assert Session.restore(model, files[0]).say("Where is Mary?") == "kitchen."
    before = page.js("fetch('/v1/sessions').then((a) => a.json()).then((d) => d.data.length)")
    foreign = tmp_path / "foreign.lm2s"
    foreign.write_bytes(b"no session at all" * 100)
    page.choose("#upload", foreign)
    page.wait("!document.querySelector('#error').hidden")
    said = page.text("#error")
    assert "session file" in said and str(tmp_path) not in said
    assert page.js("fetch('/v1/sessions').then((a) => a.json()).then((d) => d.data.length)") == before, "nothing is left of it"
    page.choose("#upload", files[0])
    status(page, "is open")
    assert page.js("document.querySelector('#error').hidden") and "kitchen" in page.text("#log")
    page.js("document.querySelector('#message').focus()")
    assert say(page, "Where is Mary?") == "kitchen."
    complaints = [one for one in page.said if "status of 413" not in str(one)]  # the browser itself logs the answer that was an error
    assert complaints == []


def test_a_text_is_read(at, tmp_path):
    page = at()
    say(page, "Hello.")
    tale = tmp_path / "tale.txt"
    tale.write_text("Daniel went to the bathroom.", encoding="utf-8")
    page.choose("#text", tale)
    status(page, "tale.txt was read")
    page.js("document.querySelector('#message').focus()")
    assert say(page, "Where is Daniel?") == "bathroom."


def test_what_an_answer_read(at):
    page = at()
    for message in ("Mary went to the kitchen.", "John moved to the garden."):
        say(page, message)
    page.js("document.querySelector('#answered-panel summary').click()")
    page.wait("document.querySelectorAll('#answered img').length === 2")
    say(page, "Where is Mary?")
    page.wait("document.querySelector('#answered tbody, #answered table').innerText.includes('kitchen')")
    assert page.js("[...document.querySelectorAll('#answered img')].every((i) => i.naturalWidth === 3 && i.alt)")  # the prompt's last token and two of the answer
    assert page.js("document.querySelector('#answered li strong').innerText") == "turn 1"


def test_stop_and_what_was_said_until_then(browser, talker):
    with served(talker, tokens=100_000) as running:
        page = browser.page(running.url)
        page.wait("document.activeElement.id === 'message'")
        page.type("Hello")
        page.press("Enter")
        page.wait("document.querySelector('#log article.assistant p').innerText.length > 20")
        assert page.js("document.querySelector('#log').ariaBusy") == "true"
        page.press("Escape")
        status(page, "stopped")
        kept = page.js("document.querySelector('#log article.assistant p').innerText")
        (own,) = Web(running)("GET", "/v1/sessions").json()["data"]
        shown = Web(running)("GET", f"/v1/sessions/{own['id']}").json()
        assert shown["turns"] == 1 and len(kept) > 20 and shown["transcript"][1]["content"].strip() == kept.strip()
        assert page.said == []


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser, model):
    with served(model, keys=("ada-key",)) as running:
        page = browser.page(running.url)
        page.wait("document.querySelector('#key-dialog').open")
        assert page.focused() == "key"
        page.type("wrong")
        page.press("Enter")
        page.wait("document.querySelector('#key-said').innerText.includes('not known') && document.querySelector('#key-dialog').open")
        page.type("ada-key")
        page.press("Enter")
        ready(page)
        assert say(page, "Mary went to the kitchen.")
        assert page.js("[sessionStorage.getItem('lm2-key'), localStorage.length, document.cookie]") == ["ada-key", 0, ""]
        assert "ada-key" not in " ".join(page.asked)


def test_a_server_that_ended_is_said(browser, model):
    with served(model) as running:
        page = ready(browser.page(running.url))
    page.type("Hello")
    page.press("Enter")
    page.wait("!document.querySelector('#error').hidden")
    assert "does not answer" in page.text("#error")
    page.wait("document.querySelector('#message').value === 'Hello'")


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (380, False)])
def test_it_fits_and_can_be_read(at, width, dark):
    """Nothing is wider than the screen, and text stands out from what is behind it by 4.5 to 1 (WCAG AA)."""
    page = at(width=width, dark=dark)
    say(page, "Mary went to the kitchen." + "x" * 200)
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    pairs = page.js(CONTRAST)
    assert pairs and all(ratio >= 4.5 for _, ratio in pairs), sorted(pairs, key=lambda p: p[1])[:5]


CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * ((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)(c[i] / 255), 0);
  const behind = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return [e.tagName + '.' + e.className + ': ' + e.innerText.slice(0, 20), (a + 0.05) / (b + 0.05)];
  });
})()"""


def test_its_files_are_small_and_in_the_wheel():
    from lm2.runtime.serve.page import FILES, FOLDER

    assert {path.name for path in FOLDER.iterdir()} == set(FILES.values())
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300 and not re.search(r"https?://(?!www\.w3\.org)", text), path
