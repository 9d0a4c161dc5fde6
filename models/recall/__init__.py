"""Recall: of what a person said earlier, the messages that a new one asks for, and a trained opening with which the backbone answers from them.

Knows token ids, arrays and its own files; imports no ML library. Sessions use it, training makes it.
"""

from .encoder import Encoder, nearness
from .encoder_files import FILES as ENCODER_FILES
from .encoder_files import from_bert, open_encoder
from .finder import Finder, as_read
from .folder import RECORD, SURE, TENSORS, Recall, open_recall, save_recall
from .reader import Found, Reader, Use
from .reader_files import FILES as READER_FILES
from .reader_files import open_reader

__all__ = [
    "ENCODER_FILES", "READER_FILES", "RECORD", "SURE", "TENSORS", "Encoder", "Finder", "Found", "Reader", "Recall", "Use", "as_read", "from_bert", "nearness",
    "open_encoder", "open_reader", "open_recall", "save_recall",
]  # fmt: skip
