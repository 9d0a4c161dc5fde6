"""What text must be before a tokenizer sees it. Knows characters only."""

from ..errors import PromptError


def check_text(text: str, what: str = "the text") -> None:
    """Raise PromptError, naming `what` and the position, if `text` has half of a surrogate pair: it stands for no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} has half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}: remove it or decode "
            "the input as UTF-8"
        ) from None
