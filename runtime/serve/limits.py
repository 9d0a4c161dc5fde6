"""The server's limits, each with the flag that sets it. Knows numbers only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request's JSON. tokens: of an answer, at most, and where the request says nothing. queue: requests that may wait.
    running: those that are answered at a time.

    sessions: named ones and conversations of all owners together. memory: bytes of sessions in memory. ping: seconds between signs of life of a stream.
    patience: seconds that a request's head may take, and its body.
    """

    body: int = 4 << 20
    tokens: int = 2048
    queue: int = 64
    running: int = 8
    sessions: int = 256
    memory: int = 1 << 30
    ping: float = 10.0
    patience: float = 60.0
