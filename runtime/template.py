"""Chat templates, as the runtime names them. They are in models/text, because training renders and encodes with them too."""

from ..models.text.template import ROLES, TEMPLATE_BYTES_MAX, ChatTemplate, check_messages

__all__ = ["ROLES", "TEMPLATE_BYTES_MAX", "ChatTemplate", "check_messages"]
