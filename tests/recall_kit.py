"""Recalls made by hand: a finder of random numbers, one in which equal runs of letters match, and random openings. NumPy alone."""

from pathlib import Path

import numpy as np
import tiny_tokenizer

from lm2.models.opening import Opening
from lm2.models.recall import Finder, Recall

KEY = "0" * 64


def finder(vocab=40, width=6, seed=0, sharpness=2.5) -> Finder:
    """Random arrays of the dtypes that a file has."""
    rng = np.random.default_rng(seed)

    def half(low, high):
        return rng.uniform(low, high, vocab).astype(np.float16)

    tables = [rng.integers(-127, 128, (vocab, width)).astype(np.int8) for _ in range(2)]
    return Finder(
        *tables, half(0.001, 0.02), half(0.001, 0.02), half(0.1, 2), half(-0.3, 0.2), half(-0.2, 0.2), half(-0.5, 0.5),
        rng.normal(size=(3, width)).astype(np.float32), sharpness,
    )  # fmt: skip


def letters(vocab=tiny_tokenizer.VOCAB, nothing=0.84) -> Finder:
    """A token and its neighbours match where they stand together: a message asks for a text that has most of its letters, three by three.

    nothing: the share of a message that must be found, about.
    """
    eye, ones, none = np.eye(vocab, dtype=np.int8) * 127, np.full(vocab, 1, np.float16), np.zeros(vocab, np.float16)
    step = np.full(vocab, 1 / 127, np.float16)
    return Finder(eye, eye, step, step, ones, none, none, np.full(vocab, nothing, np.float16), np.ones((3, vocab), np.float32), 10.0)


def opening(config, positions=3, seed=2) -> Opening:
    rng, shape = np.random.default_rng(seed), (config.num_hidden_layers, config.num_key_value_heads, positions, config.head_dim)
    return Opening(*(rng.normal(size=shape).astype(np.float16) for _ in range(2)))


def recall(config, finds=None, **fields) -> Recall:
    """A recall for models of this configuration, with short texts; passages stand in the order they were said. What is read never counts: models of
    random numbers say nothing about it."""
    usual = Recall(
        finds or letters(config.vocab_size), opening(config), "Told:\n", "- ", "\n", "None.", 64, margin=0.0, read=4, trust=0.0, doubt=-1e3, most=4,
        share=0.03, near=0.0, backbone=("tiny", KEY), training={"seek": {"steps": 3}},
    )  # fmt: skip
    return usual._replace(**fields)


def put(folder: Path, **fields) -> Path:
    """Put a recall for a model's folder into it; returns the folder."""
    from lm2.models.checkpoints.adapter import folder_key
    from lm2.models.layout import open_folder
    from lm2.models.recall.folder import write_recall

    opened = open_folder(folder)
    write_recall(folder, opened.config, recall(opened.config, backbone=("tiny", folder_key(opened)), **fields))
    return folder


def changed(folder: Path, **fields) -> None:
    """Change fields of a folder's record; one that becomes None is taken out."""
    import json

    record = json.loads((folder / "recall.json").read_text()) | fields
    (folder / "recall.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
