"""The sandbox of chat templates, as the runtime names it. It is in models/text, because training renders and encodes with them too."""

from ..models.text.sandbox import Refusal, RunawayError, Sandbox

__all__ = ["Refusal", "RunawayError", "Sandbox"]
