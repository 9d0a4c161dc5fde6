"""The errors a user can meet. Knows nothing but names: each message says the file or field, both values and the remedy."""

LINE_MAX = 1200


class LM2Error(Exception):
    """Base of every error this package raises on purpose. The message is one line, meant for a person: what a file from outside brings into it
    is shown with its control characters as escapes, and a message of more than LINE_MAX characters without its middle."""

    def __str__(self) -> str:
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else _escaped(c) for c in " ".join(text.split()))
        return text if len(text) <= LINE_MAX else f"{text[: LINE_MAX - 305]} ... {text[-300:]}"


def _escaped(c: str) -> str:
    """A character that cannot be shown; a byte of a path that is no UTF-8 as that byte."""
    return f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c.encode("unicode_escape").decode()


class ConfigError(LM2Error, ValueError):
    """A configuration field has a wrong type or value, or contradicts another field."""


class ModelFileError(LM2Error):
    """A model file is missing, truncated, malformed, or contradicts its configuration."""


class TensorFileError(LM2Error):
    """A safetensors container breaks the format's own rules (header, offsets, sizes)."""


class TensorDtypeError(TensorFileError):
    """A safetensors header names a dtype that the format, as this version knows it, does not have."""


class ConvertError(LM2Error):
    """A source checkpoint cannot be converted."""


class DownloadError(LM2Error):
    """A model could not be fetched, or what was fetched is not what was pinned."""


class LicenseError(DownloadError):
    """A model's licence must be accepted by whoever uses it before the model is fetched, and was not."""


class BackendError(LM2Error):
    """A backend is unknown, its extra is not installed, or the device or dtype asked for is not there."""


class PromptError(LM2Error, ValueError):
    """A prompt, a message or a sampling setting cannot be used."""


class TokenizerError(LM2Error):
    """A tokenizer or chat template is missing, malformed, or refuses the conversation."""


class WriteError(LM2Error, OSError):
    """A file could not be written (full disk, no permission); what was there before is unchanged."""
