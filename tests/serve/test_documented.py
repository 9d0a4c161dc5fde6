"""The commands of docs/serving.md, run as they stand, against a server on a port of its own."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import command_line
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.M | re.S)
SERVES = [body for language, body in BLOCKS if body.startswith("lm2 serve")]
ASKS = [block for block in BLOCKS if block[1] not in SERVES]


def test_there_is_something_to_run():
    assert len(SERVES) == 2 and len(ASKS) == 4


@pytest.mark.parametrize("body", SERVES)
def test_a_command_that_serves_is_one(body, tmp_path):
    from lm2.runtime.commands.serve import command

    assert command.make_context("serve", shlex.split(body)[2:]).params["model"] == "lm2-tiny"


def test_a_command_with_another_flag_is_none():
    from lm2.runtime.commands.serve import command

    with pytest.raises(click.UsageError):
        command.make_context("serve", ["lm2-tiny", "--key", "x"])


@pytest.mark.parametrize(("language", "body"), ASKS, ids=range(len(ASKS)))
def test_what_is_asked_is_answered(server, language, body, tmp_path):
    if "curl" in body and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    body = body.replace("http://127.0.0.1:8080", server.url)
    if language == "python":
        done = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    else:
        shim = tmp_path / "lm2"
        shim.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(command_line.START)} \"$@\"\n")
        shim.chmod(0o755)
        script = f"PATH={shlex.quote(str(tmp_path))}:$PATH\n{body}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "kitchen" in done.stdout and '"error"' not in done.stdout, done.stdout


def test_the_flags_and_paths_are_those_there_are():
    from lm2.runtime.commands.serve import command
    from lm2.runtime.serve.page import PATHS
    from lm2.runtime.serve.routes import ROUTES

    flags = {name for option in command.params for name in option.opts}
    assert set(re.findall(r"`(--[a-z-]+)`", PAGE)) <= flags
    assert "| `/` |" in PAGE
    for row in ROUTES:
        if row.path in PATHS:  # files of the page, which nobody asks for by name
            continue
        parts = [part for part in row.path.split("/") if part and not part.startswith("{")]
        assert all(part in PAGE for part in parts), row.path
