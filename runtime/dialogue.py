"""Single turns of a conversation, as the runtime names them. They are in models/text, because training renders and encodes with them too."""

from ..models.text.dialogue import MARK, Dialogue, PlainTemplate, Template

__all__ = ["MARK", "Dialogue", "PlainTemplate", "Template"]
