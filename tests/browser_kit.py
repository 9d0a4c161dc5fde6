"""A headless Chromium for tests, driven by its own debugging protocol through a pipe: needs the program alone, no driver and no package.

Knows the protocol's few commands that tests use. LM2_CHROMIUM names the program; else it is looked for on PATH.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--force-device-scale-factor=1", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
KEYS = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " "), "ArrowDown": (40, ""), "Home": (36, ""),
}  # fmt: skip
SHIFT = 8
WAIT = 120  # seconds: then it hangs


def program():
    """The browser's path, None where there is none."""
    given = os.environ.get("LM2_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One process; `page()` opens a tab of a profile of its own. more: flags besides FLAGS."""

    def __init__(self, more=()):
        self.folder = tempfile.mkdtemp(prefix="lm2-chromium-")
        ours, theirs = os.pipe(), os.pipe()  # what we read, what it reads
        keep = {3: theirs[0], 4: ours[1]}
        shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        command = ["bash", "-c", shell, "bash", str(keep[3]), str(keep[4]), program(), *FLAGS[:-1], *more, f"--user-data-dir={self.folder}", FLAGS[-1]]
        self.process = subprocess.Popen(command, pass_fds=keep.values(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in keep.values():
            os.close(end)
        self.read, self.write = os.fdopen(ours[0], "rb", 0), os.fdopen(theirs[1], "wb", 0)
        self.left, self.last, self.events = b"", 0, []

    def call(self, method, session=None, **params):
        """A command's result. Events that come meanwhile are kept."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self.write.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.last:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def page(self, url, width=1100, height=760, dark=False):
        """A tab that nothing else is known to, at `url`."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, url, width, height, dark)

    def close(self):
        self.call("Browser.close")
        self.process.wait(20)
        self.read.close()
        self.write.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _next(self):
        while b"\0" not in self.left:
            part = self.read.read(1 << 16)
            assert part, "the browser ended"
            self.left += part
        one, self.left = self.left.split(b"\0", 1)
        return json.loads(one)


class Page:
    """A tab. `said`: console messages, exceptions and the browser's own complaints, which must be none."""

    def __init__(self, browser, session, context, url, width, height, dark):
        self.browser, self.session, self.context = browser, session, context
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def js(self, expression):
        """The value of an expression, promises awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, condition):
        """Until an expression is true; returns its value."""
        end = time.monotonic() + WAIT
        while not (value := self.js(f"(() => {{ try {{ return {condition} }} catch {{ return null }} }})()")):
            assert time.monotonic() < end, f"never true: {condition}; the page: {self.js('document.body.innerText')}"
            time.sleep(0.03)
        return value

    def text(self, selector):
        return self.js(f"document.querySelector({selector!r}).innerText")

    def focused(self):
        """The element that has the focus: its id, or its text."""
        return self.js("document.activeElement.id || document.activeElement.innerText")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key, shift=False):
        code, text = KEYS[key]
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code, "modifiers": SHIFT * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def tab_to(self, name, most=60):
        """Press Tab until the element of this id, or with this text, has the focus; names on the way."""
        seen = []
        for _ in range(most):
            self.press("Tab")
            seen.append(self.focused())
            if seen[-1] == name:
                return seen
        raise AssertionError(f"{name!r} is not reached by Tab: {seen}")

    def choose(self, selector, path):
        """Give a file input a file."""
        node = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=node)

    def downloads(self, folder):
        self.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context)

    def tree(self):
        """(role, name) of what a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @property
    def said(self):
        self.js("1")  # what was said before it has come
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [e["params"] for e in self.browser.events if e.get("sessionId") == self.session and e["method"] in kinds]

    @property
    def asked(self):
        """Addresses that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.browser.events if e.get("sessionId") == self.session and e["method"] == "Network.requestWillBeSent"]
