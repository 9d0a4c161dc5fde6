"""Where a model's recall lies: in its own folder, else with the package for a model of the catalogue. Knows folders; reads no array."""

import shutil
from pathlib import Path

from ..home import models_folder, shipped_folder
from ..recall import ENCODER_FILES, READER_FILES, RECORD, TENSORS
from .catalog import CATALOG


def place_of(folder: Path) -> Path | None:
    """The folder with the recall of the model in `folder`; None where there is none."""
    if (folder / RECORD).is_file():
        return folder
    for entry in CATALOG.values():
        place = shipped_folder() / entry.recall
        if entry.recall and folder == models_folder() / entry.name and (place / RECORD).is_file():
            return place
    return None


def carry(folder: Path, out: Path) -> None:
    """Put the recall of the model in `folder`, if it has one, into the folder `out` that is being made of it."""
    place = place_of(folder)
    if place is not None:
        for name in (RECORD, TENSORS, *(x for x in (*ENCODER_FILES, *READER_FILES) if (place / x).is_file())):
            shutil.copyfile(place / name, out / name)
