"""JSON that belongs to sessions: the responses a client may read again, the items of conversations. Beside the session's file where there is a store, else in
memory; responses there are bounded in bytes, the oldest out first. Knows no model."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .store import PASSING, Name, Store

BYTES_MAX = 64 << 20


class Records:
    """most: bytes of the responses in memory, where there is no store."""

    def __init__(self, store: Store | None, most: int = BYTES_MAX):
        self.store, self.most = store, most
        self._texts: OrderedDict[Name, str] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    def put(self, name: Name, content: dict[str, Any]) -> None:
        """Keep a record. Raises WriteError."""
        if self.store is not None:
            self.store.write_json(name, content)
            return
        text = json.dumps(content, ensure_ascii=True)  # one byte a character
        with self._lock:
            self._remove(name)
            self._texts[name] = text
            self._bytes += len(text) if name.kind in PASSING else 0
            while self._bytes > self.most:
                self._remove(next(n for n in self._texts if n.kind in PASSING))

    def put_with(self, name: Name, content: dict[str, Any], write: Callable[[], None]) -> None:
        """Keep a record, and what it is a record of, which `write` writes: both or neither, also where the server is killed between. Raises what `write`
        raises, and WriteError. content: with the `turns` of the session."""
        if self.store is not None:
            self.store.announce(name, content)
        try:
            write()
        except BaseException:
            if self.store is not None:
                self.store.retract(name)
            raise
        if self.store is not None:
            self.store.enact(name)
        else:
            self.put(name, content)

    def get(self, name: Name) -> dict[str, Any] | None:
        """The record, or None."""
        if self.store is not None:
            found = self.store.read_json(name)
            return found if isinstance(found, dict) else None
        with self._lock:
            text = self._texts.get(name)
        return None if text is None else json.loads(text)

    def drop(self, name: Name) -> None:
        """Forget a record that is in memory; files go with their session's."""
        with self._lock:
            self._remove(name)

    def _remove(self, name: Name) -> None:
        text = self._texts.pop(name, None)
        if text is not None and name.kind in PASSING:
            self._bytes -= len(text)
