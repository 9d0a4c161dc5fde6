"""The commands shown in the documentation, run as they stand: every ```sh and ```python block of the README and docs/*.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.M | re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(language, body, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
    if "smollm2" in body or page.name == "README.md"
]


def test_there_is_something_to_run():
    assert len(BLOCKS) >= 4


@pytest.mark.real
@pytest.mark.parametrize(("language", "body"), BLOCKS)
def test_block(language, body, smollm2, tmp_path):
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    env = os.environ | {"LM2_HOME": str(smollm2.parent.parent), "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]}
    command = ["bash", "-euo", "pipefail", "-c", body] if language == "sh" else [sys.executable, "-c", body]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    last = body.strip().splitlines()[-1]
    if last.startswith("# "):  # what the block shows of its output
        assert done.stdout.strip().splitlines()[-1].strip() == last.removeprefix("# ")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
