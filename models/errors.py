"""The errors a user can meet. Knows nothing but names: each message says the file or field, both values and the remedy."""


class LM2Error(Exception):
    """Base of every error this package raises on purpose. The message is one line, meant for a person."""


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


class BackendError(LM2Error):
    """A backend is unknown, its extra is not installed, or the device or dtype asked for is not there."""


class PromptError(LM2Error, ValueError):
    """A prompt, a message or a sampling setting cannot be used."""


class TokenizerError(LM2Error):
    """A tokenizer or chat template is missing, malformed, or refuses the conversation."""


class WriteError(LM2Error, OSError):
    """A file could not be written (full disk, no permission); what was there before is unchanged."""
