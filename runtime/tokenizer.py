"""The tokenizer, as the runtime names it. It is in models/text, because training renders and encodes with them too."""

from ..models.text.characters import check_text
from ..models.text.tokenizer import Tokenizer

__all__ = ["Tokenizer", "check_text"]
