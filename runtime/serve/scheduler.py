"""Who computes, and in which order: one thread that owns the model takes jobs first come, first served. Knows no HTTP and no session.

What a job says goes to its Ticket, which the other side reads without blocking anybody: a reader that is slow or gone never holds the thread. A later
scheduler may run several jobs at a time; jobs and tickets stay as they are.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from .refusal import Refusal

Work = Callable[["Ticket"], Any]


class Gone(Exception):
    """Nobody waits for the job any more, or the server is stopping: it ends without an answer."""


class Ticket:
    """One job's place in the queue, and what it says. Made in the event loop; `say` is called by the thread."""

    def __init__(self, scheduler: "Scheduler", work: Work):
        self.scheduler, self.work = scheduler, work
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.cancelled = False

    @property
    def over(self) -> bool:
        """Whether the job should end now: its client went away, or the server is stopping."""
        return self.cancelled or self.scheduler.stopping

    def say(self, kind: str, value: Any = None) -> None:
        """Tell the other side. Its memory is bounded by the job: an answer has a limit of tokens."""
        if self.cancelled:
            return
        with suppress(RuntimeError):  # the loop may have ended: then nobody reads
            self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))

    def cancel(self) -> None:
        """Nobody waits any more: a job in the queue leaves it, one that runs ends soon."""
        self.cancelled = True
        self.scheduler.forget(self)

    async def next(self) -> tuple[str, Any]:
        """What the job says next: its own words, then ("done", what it returned) or ("failed", the error)."""
        return await self._events.get()

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """All that the job says. Raises the job's error."""
        while True:
            kind, value = await self.next()
            if kind == "failed":
                raise value
            yield kind, value
            if kind == "done":
                return

    async def result(self) -> Any:
        """What the job returns. Raises its error."""
        async for kind, value in self.events():
            if kind == "done":
                return value


class Scheduler:
    """queue: jobs that may wait, besides the one that runs. Raises nothing of its own but Refusal, on `submit`."""

    def __init__(self, queue: int):
        self.most = queue
        self.stopping = False
        self.running: Ticket | None = None
        self.seconds = 1.0  # what a job takes, a moving average
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lm2-model", daemon=True)
        self._first: Callable[[], bool] | None = None
        self._last: Callable[[], None] | None = None

    def start(self, first: Callable[[], bool], last: Callable[[], None]) -> None:
        """Begin. `first` runs in the thread before any job (load the model) and says whether to go on, `last` when it ends."""
        self._first, self._last = first, last
        self._thread.start()

    def submit(self, work: Work) -> Ticket:
        """Queue a job. Raises Refusal: 429 where the queue is full, 503 where the server is stopping."""
        with self._changed:
            if self.stopping:
                raise Refusal(503, "the server is stopping", code="stopping", retry_after=5)
            if len(self._waiting) + (self.running is not None) > self.most:
                wait = min(60, max(1, round(self.seconds * len(self._waiting))))
                raise Refusal(429, f"{len(self._waiting)} requests wait already, as many as may: try again later", code="queue_full", retry_after=wait)
            ticket = Ticket(self, work)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def forget(self, ticket: Ticket) -> None:
        """Take a job that has not begun out of the queue."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def stop(self) -> None:
        """End: no new jobs, those that wait are refused, the one that runs ends at a whole turn. Returns at once."""
        with self._changed:
            self.stopping = True
            self._changed.notify()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the thread's end; whether it ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        assert self._first is not None and self._last is not None
        try:
            going = self._first()
            while going and (ticket := self._next()) is not None:
                self._do(ticket)
        finally:
            self.stop()
            while self._waiting:
                self._waiting.popleft().say("failed", Refusal(503, "the server is stopping", code="stopping", retry_after=5))
            self._last()

    def _next(self) -> Ticket | None:
        with self._changed:
            while not self._waiting and not self.stopping:
                self._changed.wait()
            if self.stopping:
                return None
            self.running = self._waiting.popleft()
            return self.running

    def _do(self, ticket: Ticket) -> None:
        began = time.monotonic()
        try:
            ticket.say("done", ticket.work(ticket))
        except Gone:
            ticket.say("failed", Refusal(503, "the server is stopping", code="stopping", retry_after=5))
        except Exception as error:
            ticket.say("failed", error)
        finally:
            self.running = None
            self.seconds += 0.2 * (time.monotonic() - began - self.seconds)
