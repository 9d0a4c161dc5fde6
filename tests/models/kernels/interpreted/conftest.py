"""Tests for a process that has TRITON_INTERPRET=1 from its start (see test_processes.py); elsewhere they are not collected."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
