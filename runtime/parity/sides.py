"""Which backends are compared: `torch`, `torch:bfloat16`, `torch:cuda`, `mlx@FOLDER` and their mixtures. Knows names and models, no numbers."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...models.config import DTYPES
from ...models.errors import BackendError, ModelFileError
from ..backend import BACKENDS

if TYPE_CHECKING:
    from ..loading import Model


@dataclass(frozen=True)
class Spec:
    """One entry of --backends: NAME[:DTYPE][:DEVICE][@FOLDER]. Empty fields are what the command line says for all."""

    label: str
    backend: str
    dtype: str = ""
    device: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Side:
    """A loaded backend and what it is called in the report."""

    label: str
    model: "Model"


def parse(text: str) -> list[Spec]:
    """The entries of --backends, separated by commas; the first is the reference. Raises BackendError naming the entry."""
    specs = [_entry(part.strip()) for part in text.split(",")]
    if len(specs) < 2:
        raise BackendError(f"--backends {text} names one backend: give at least two, the reference first, such as torch,mlx")
    for i, spec in enumerate(specs):
        if spec in specs[:i]:
            raise BackendError(f"--backends {text} names {spec.label} twice: leave one out")
    return specs


def _entry(text: str) -> Spec:
    head, _, folder = text.partition("@")
    if "@" in text and not folder:
        raise BackendError(f"backend {text!r} ends with @: a model folder must follow, such as mlx@models/small-4bit")
    name, *options = head.split(":")
    if name not in BACKENDS:
        raise BackendError(f"backend {text!r} must begin with one of {', '.join(BACKENDS)}")
    dtype = device = ""
    for option in options:
        if option in DTYPES and not dtype:
            dtype = option
        elif option.isdigit() and device and ":" not in device:
            device += f":{option}"
        elif option and not option.isdigit() and option not in DTYPES and not device:
            device = option
        else:
            raise BackendError(
                f"backend {text!r}: {option!r} is no dtype ({', '.join(DTYPES)}) and no device: NAME[:DTYPE][:DEVICE][@FOLDER]"
            )
    return Spec(text, name, dtype, device, folder)


def same_model(reference: Side, other: "Model", label: str) -> Side:
    """`other` as a side to compare with `reference`, with the reference's tokenizer, template and sampling, so that both read the same ids.

    Raises ModelFileError when the two are not of one architecture.
    """
    mine, theirs = reference.model.config.function_dict(), other.config.function_dict()
    for key in sorted({*mine, *theirs}):
        if mine.get(key) != theirs.get(key):
            raise ModelFileError(
                f"{label} is another model than {reference.label}: {key} is {theirs.get(key)}, not {mine.get(key)}: give a folder made from it"
            )
    r = reference.model
    return Side(label, replace(other, tokenizer=r.tokenizer, template=r.template, sampling=r.sampling, eos=r.eos))
