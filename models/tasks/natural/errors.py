"""What is wrong with a corpus: one line that names the file, the place and the remedy."""

from ...errors import LM2Error


class CorpusError(LM2Error, ValueError):
    """A file of facts, talk or dialogues breaks its form, or a draw from it is not possible."""
