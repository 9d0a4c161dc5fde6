"""What tests of the page in a browser need: onnxruntime-web's folder, a plain web server over an exported page. Knows no model.

LM2_ORT_WEB names the folder; else it is looked for in .cache/node, where `npm install --ignore-scripts onnxruntime-web@VERSION` puts it. Never fetched.
"""

import functools
import http.server
import os
import threading
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
ISOLATED = {"cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp"}


def ort_web():
    """The folder of onnxruntime-web of the version that is tested, None where there is none."""
    from lm2.export.web_ort import find_package
    from lm2.models.errors import ConvertError

    try:
        return find_package(Path(os.environ.get("LM2_ORT_WEB") or ROOT / ".cache" / "node" / "node_modules" / "onnxruntime-web"))
    except ConvertError:
        return None


@contextmanager
def served(folder, headers=None, asked=None):
    """A plain web server over `folder`; yields its address. asked: a list that takes the paths asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}

        def end_headers(self):
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_):
            if asked is not None:
                asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
