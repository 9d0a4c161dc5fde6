"""What conversations begin with, read once: windows with the head fed (a system prompt, given or the template's own), copied for each conversation that begins.

Knows a backend and ids, no text and no session. A head is fed by itself whether or not it is here already, so that what is here has no say in an answer. An
owner's heads are his own: how soon an answer comes tells nobody what another's system prompt is. Used by the jobs, of which one runs at a time.
"""

from collections import OrderedDict
from typing import Any

import numpy as np

from ..session.cursor import Feeder
from .shared import Shared, done

MOST = 8  # heads that are kept, the newest used; of each the positions that are filled take memory
Key = tuple[str, tuple[int, ...], int]


class Heads:
    """Over one backend. Where that cannot copy windows (Backend.copied), every conversation reads its head itself."""

    def __init__(self, backend: Shared):
        self.backend = backend
        self._can = backend.config.memory.cell == "gated"
        self._windows: OrderedDict[Key, Any] = OrderedDict()

    def begun(self, owner: str, head: tuple[int, ...], feeder: Feeder, ids: tuple[int, ...]) -> Any:
        """A window of `feeder`'s size in which `head` is fed, the caller's own; None where `ids` do not begin with it, or are no more, and for a head that has
        to be folded in between. `feeder.on_feed` hears of tokens that had to be read for it."""
        if not self._can or not 0 < len(head) <= feeder.chunk or len(ids) <= len(head) or ids[: len(head)] != head:
            return None
        key = owner, head, feeder.size
        if key not in self._windows:
            window = self.backend.start(1, window=feeder.size)
            self._can = self.backend.copied(window) is not None
            if not self._can:
                return None
            window = self._read(head, window)
            feeder.on_feed(len(head))
            self._windows[key] = window
            if len(self._windows) > MOST:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self.backend.copied(self._windows[key])

    def _read(self, head: tuple[int, ...], window: Any) -> Any:
        """The window with the head in it. One that is no longer than a piece is read at once, so that of several conversations that begin together one reads it."""
        ids = np.array([head], np.int64)  # (1, p)
        if 0 < self.backend.piece < len(head):
            return self.backend.extend(ids, window)[1]
        return done(lambda: self.backend.real.extend(ids, window)[1])
