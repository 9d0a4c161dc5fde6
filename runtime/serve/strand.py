"""Plain blocking code that can be stopped in its middle and gone on with: a thread that runs only while whoever resumes it waits. Knows no job and no model.

Of the resuming thread and its strands exactly one runs at any time, so what they share needs no locks. A resume and the pause that follows it cost some
20 microseconds.
"""

import threading
from collections.abc import Callable
from typing import Any


class Strand(threading.Thread):
    """run() begins at the first `resume`. `ended`: whether it returned or raised; then `result`, or `error`."""

    def __init__(self, run: Callable[[], Any], name: str):
        super().__init__(name=name, daemon=True)
        self._work: Callable[[], Any] | None = run
        self._go, self._back = threading.Lock(), threading.Lock()  # each released by the other side: the strand may go, it has paused
        self._go.acquire()
        self._back.acquire()
        self._passed: Any = None
        self._thrown: BaseException | None = None
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def resume(self, value: Any = None, error: BaseException | None = None) -> Any:
        """Go on, with `value` as what `pause` returns, or `error` as what it raises. Returns what the strand pauses with next; None where it ended."""
        self._passed, self._thrown = value, error
        self._go.release()
        self._back.acquire()
        if self.ended:
            self.join()
        passed, self._passed = self._passed, None
        return passed

    def pause(self, value: Any) -> Any:
        """Called in the strand: let the other side go on with `value`, until it resumes."""
        self._passed = value
        self._back.release()
        self._go.acquire()
        passed, error = self._passed, self._thrown
        self._passed = self._thrown = None
        if error is not None:
            raise error
        return passed

    def run(self) -> None:
        self._go.acquire()
        work, self._work = self._work, None
        try:
            if self._thrown is not None:
                raise self._thrown
            assert work is not None
            self.result = work()
        except BaseException as error:
            self.error = error
        finally:
            self._passed, self.ended = None, True
            self._back.release()


def here() -> Strand | None:
    """The strand that the calling code runs in, if it runs in one."""
    thread = threading.current_thread()
    return thread if isinstance(thread, Strand) else None
