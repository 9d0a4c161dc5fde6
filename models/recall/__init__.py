"""Recall: of what a person said earlier, the messages that a new one asks for, and a trained opening with which the backbone answers from them.

Knows token ids, arrays and its own two files; imports no ML library. Sessions use it, training makes it.
"""

from .finder import Finder, as_read
from .folder import RECORD, SURE, TENSORS, Recall, open_recall, save_recall

__all__ = ["RECORD", "SURE", "TENSORS", "Finder", "Recall", "as_read", "open_recall", "save_recall"]
