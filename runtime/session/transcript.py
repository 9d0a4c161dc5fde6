"""The transcript: what was said, for people to read. Bounded, oldest out first; the memory is not touched by it. Knows text only."""

from collections.abc import Sequence

TRANSCRIPT_CHARS = 1 << 20
TURN_CHARS = 1 << 16
MESSAGE_COST = 64  # characters a message counts for besides its text, so that many short ones are bounded too


def remember(transcript: list[dict[str, str]], role: str, content: str) -> int:
    """Add a message, shortened to TURN_CHARS; returns how many of the oldest were dropped to stay within TRANSCRIPT_CHARS."""
    transcript.append({"role": role, "content": _short(content)})
    size = sum(len(m["content"]) + MESSAGE_COST for m in transcript)
    dropped = 0
    while size > TRANSCRIPT_CHARS:
        size -= len(transcript[dropped]["content"]) + MESSAGE_COST
        dropped += 1
    del transcript[:dropped]
    return dropped


def newest(said: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """What `remember` leaves of so many messages (role, content), looked at from the last one on: of a long list no more than is left."""
    kept: list[dict[str, str]] = []
    size = 0
    for role, content in reversed(said):
        text = _short(content)
        size += len(text) + MESSAGE_COST
        if size > TRANSCRIPT_CHARS:
            break
        kept.append({"role": role, "content": text})
    return kept[::-1]


def _short(content: str) -> str:
    return content if len(content) <= TURN_CHARS else content[:TURN_CHARS] + f" [{len(content)} characters in all]"


def last_exchange(transcript: list[dict[str, str]]) -> str | None:
    """The message that the last answer answers, or None if the transcript does not end with an answer."""
    if len(transcript) < 2 or (transcript[-2]["role"], transcript[-1]["role"]) != ("user", "assistant"):
        return None
    return transcript[-2]["content"]


def shortened(content: str) -> bool:
    """Whether a message of the transcript is not the whole of what was said."""
    return len(content) > TURN_CHARS
