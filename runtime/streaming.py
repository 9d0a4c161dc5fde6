"""Text as it is generated, as the runtime names it. It is in models/text, because training renders and encodes with them too."""

from ..models.text.streaming import STOP_CHARS_MAX, STOPS_MAX, Detokenizer, StopStrings

__all__ = ["STOPS_MAX", "STOP_CHARS_MAX", "Detokenizer", "StopStrings"]
