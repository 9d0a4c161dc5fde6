"""Text as it is generated: tokens to characters, and stop strings. Knows neither models nor files.

Both classes hold a few characters at most, so a token costs the same however long the text already is.
"""

import codecs
from collections.abc import Sequence

from ..errors import PromptError
from .vocabulary import Vocabulary

STOPS_MAX = 64
STOP_CHARS_MAX = 1024


class Detokenizer:
    """Tokens in, text out as soon as it is certain: never half a character, never U+FFFD where later bytes complete
    one.

    What `add` and `flush` return, joined, is `Tokenizer.decode` of all ids. Bytes that are no UTF-8 become U+FFFD,
    one for each longest wrong part (Unicode's recommended practice). skip_special: leave special tokens out.
    continuing: the text goes on from something, so a SentencePiece tokenizer's leading space is kept; otherwise it is
    dropped, as it is not part of the text.
    """

    def __init__(self, tokenizer: Vocabulary, skip_special: bool = False, continuing: bool = False):
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._first = not continuing
        self._drop, self._left = ("", 0) if continuing else tokenizer.pieces.strip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Text that became certain with this id; often nothing. An id the tokenizer does not have adds nothing."""
        piece = self._tokenizer.piece(token, self._skip, self._first)
        if piece is None:
            return ""
        self._first = False
        return self._stripped(self._utf8.decode(piece))

    def flush(self) -> str:
        """What was still waiting for more bytes, as U+FFFD. The next `add` then continues the text."""
        return self._stripped(self._utf8.decode(b"", True))

    def _stripped(self, text: str) -> str:
        while self._left and text:
            if not text.startswith(self._drop):
                self._left = 0
                break
            text, self._left = text[len(self._drop) :], self._left - 1
        return text


class StopStrings:
    """Cuts a stream of text at the first stop string, which is not shown; `matched` is then that string.

    The stop string that is complete first wins, and of those the longest, so the result does not depend on how the
    text is split. Raises PromptError for an empty stop string, one of more than 1,024 characters, or more than 64 of
    them.
    """

    def __init__(self, stops: Sequence[str] = ()):
        if isinstance(stops, str):
            raise PromptError(f"stop {stops!r} must be a list of stop strings, not one string")
        if len(stops) > STOPS_MAX:
            raise PromptError(f"{len(stops)} stop strings are too many: give at most {STOPS_MAX}")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise PromptError(f"stop string {stop!r} must be text of at least one character")
            if len(stop) > STOP_CHARS_MAX:
                raise PromptError(f"stop string of {len(stop)} characters is too long: at most {STOP_CHARS_MAX}")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that can be shown now, and whether a stop string was met. Text after the stop, and any fed later, is dropped."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.matched = min(ends)
            self._held = ""
            return text[:at], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, now that nothing follows it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning, not the whole, of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
