"""What a token is in bytes, as the runtime names it. It is in models/text, because training renders and encodes with them too."""

from ..models.text.pieces import Pieces, read_decoder

__all__ = ["Pieces", "read_decoder"]
