"""Tests for a process of their own, so that a crash of the compiler is one failure (see test_processes.py); elsewhere they are not collected."""

import os

collect_ignore_glob = [] if os.environ.get("LM2_TEST_COMPILE") == "1" else ["test_*.py"]
