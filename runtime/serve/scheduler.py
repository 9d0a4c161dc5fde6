"""Who computes, and in which order: one thread that owns the model runs several jobs in rounds; the others wait, first come, first served. Knows no HTTP and
no session.

What a job says goes to its Ticket, which the other side reads without blocking anybody: a reader that is slow or gone never holds the thread.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import suppress
from typing import Any

from .refusal import Refusal
from .rounds import Gone, Job, Rounds
from .tenancy import Holding

Work = Callable[["Ticket"], Any]
AGAIN = 0.02  # seconds until a key that another server has is tried again


class Ticket:
    """One job's place in the queue, and what it says. Made in the event loop; `say` is called by the job. key: what two jobs never have at once.

    `answering`, which the job sets: it is to end at a whole turn, by itself; until then it ends wherever it is fed.
    """

    def __init__(self, scheduler: "Scheduler", work: Work, key: Hashable = None):
        self.scheduler, self.work, self.key = scheduler, work, key
        self.answering = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.cancelled = False
        self.again = 0.0  # when to ask for the key, at the earliest

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
    """queue: jobs that may wait, besides `most`, those that run at a time. holding: whose keys other servers have too, so that a job waits for theirs. Raises
    nothing of its own but Refusal, on `submit`."""

    def __init__(self, queue: int, most: int = 1, holding: Holding | None = None):
        self.queue, self.most, self._holding = queue, most, holding
        self.stopping = False
        self.seconds = 1.0  # what a job takes, a moving average
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Job, tuple[Ticket, float]] = {}  # and when it began
        self._rounds = Rounds()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lm2-model", daemon=True)
        self._first: Callable[[], bool] | None = None
        self._last: Callable[[], None] | None = None

    def start(self, first: Callable[[], bool], last: Callable[[], None]) -> None:
        """Begin. `first` runs in the thread before any job (load the model) and says whether to go on, `last` when it ends."""
        self._first, self._last = first, last
        self._thread.start()

    def submit(self, work: Work, key: Hashable = None) -> Ticket:
        """Queue a job. Jobs with the same key run one after the other, in this order. Raises Refusal: 429 where the queue is full, 503 where the server is
        stopping."""
        with self._changed:
            if self.stopping:
                raise _stopping()
            if len(self._waiting) + len(self._running) >= self.queue + self.most:
                wait = min(60, max(1, round(self.seconds * len(self._waiting) / self.most)))
                raise Refusal(429, f"{len(self._waiting)} requests wait already, as many as may: try again later", code="queue_full", retry_after=wait)
            ticket = Ticket(self, work, key)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> tuple[Ticket, ...]:
        with self._changed:
            return tuple(ticket for ticket, _ in self._running.values())

    def forget(self, ticket: Ticket) -> None:
        """Take a job that has not begun out of the queue."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def stop(self) -> None:
        """End: no new jobs, those that wait are refused, those that run end at a whole turn. Returns at once."""
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
            while going and self._wait():
                for _ in range(self.most - len(self._running)):  # others' turns come before more than that
                    self._begin()
                self._pause()
                for job in self._rounds.round():
                    self._end(job)
        finally:
            self.stop()
            for ticket in (*self._waiting, *(ticket for ticket, _ in self._running.values())):
                self._give(ticket)
                ticket.say("failed", _stopping())
            self._waiting.clear()
            self._last()

    def _wait(self) -> bool:
        """Wait for something to do; whether there is anything."""
        with self._changed:
            while not self._waiting and not self._running and not self.stopping:
                self._changed.wait()
            return not self.stopping or bool(self._running)

    def _pause(self) -> None:
        """Where all that wait are for other servers' keys, wait a moment."""
        with self._changed:
            if self._waiting and not self._running and not self.stopping:
                self._changed.wait(AGAIN)

    def _begin(self) -> None:
        """Begin the next job, if there is one that may."""
        with self._changed:
            if self.stopping:
                return
            taken = {ticket.key for ticket, _ in self._running.values()}
            for ticket in self._waiting:
                if ticket.key is None or (ticket.key not in taken and self._taken(ticket)):
                    break
                taken.add(ticket.key)
            else:
                return
            self._waiting.remove(ticket)
            try:
                job = Job(lambda: ticket.work(ticket), lambda: ticket.over and not ticket.answering)
            except RuntimeError as error:  # the system gives no thread
                self._give(ticket)
                ticket.say("failed", error)
                return
            self._running[job] = ticket, time.monotonic()
        self._rounds.add(job)
        if job.ended:
            self._end(job)

    def _taken(self, ticket: Ticket) -> bool:
        """Whether this server has the ticket's key now, taken from what servers share; also where that failed, which the job then tells."""
        if self._holding is None:
            return True
        if time.monotonic() < ticket.again:
            return False
        try:
            if self._holding.take(ticket.key):
                return True
        except Exception as error:
            ticket.work = _raising(error)
            return True
        ticket.again = time.monotonic() + AGAIN
        return False

    def _give(self, ticket: Ticket) -> None:
        if self._holding is not None and ticket.key is not None:
            self._holding.give(ticket.key)

    def _end(self, job: Job) -> None:
        ticket, began = self._running[job]
        self._give(ticket)
        error = job.strand.error
        if error is None:
            ticket.say("done", job.strand.result)
        else:
            ticket.say("failed", _stopping() if isinstance(error, Gone) else error)
        with self._changed:
            del self._running[job]
        self.seconds += 0.2 * (time.monotonic() - began - self.seconds)


def _raising(error: Exception) -> Work:
    def work(ticket: Ticket) -> Any:
        raise error

    return work


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping", code="stopping", retry_after=5)
