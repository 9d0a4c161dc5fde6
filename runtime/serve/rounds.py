"""Whose turn it is: several jobs on one thread, which feeds the model for each in turn. Knows jobs and feeds; no queue, no session.

In a round every job that makes an answer gets a token, and one of those that read gets a piece, in rotation. Where some read and others answer, reading
waits until answering had as much time: a long document takes half of the machine, not all of it.
"""

import time
from collections.abc import Callable
from typing import Any

from .shared import Call, Feed
from .strand import Strand


class Gone(Exception):
    """Nobody waits for the job any more, or the server is stopping: it ends without an answer."""


class Job:
    """work() in a strand. ends(): whether it should end, with Gone, before it is fed again. `wants`: what it waits for, None before its begin and at its end."""

    def __init__(self, work: Callable[[], Any], ends: Callable[[], bool]):
        self.strand, self._ends = Strand(work, "lm2-job"), ends
        self.wants: Feed | None = None

    @property
    def ended(self) -> bool:
        return self.strand.ended

    def go_on(self, value: Any = None, error: BaseException | None = None) -> None:
        """Let it go on until it wants to be fed, or ends."""
        wants = self.strand.resume(value, error)
        while wants is not None:
            value, error = None, None
            if isinstance(wants, Feed):
                if not self._ends():
                    break
                error = Gone()
            else:
                assert isinstance(wants, Call)
                value, error = outcome_of(wants.run)
            wants = self.strand.resume(value, error)
        self.wants = wants


class Rounds:
    """The jobs that run. Used by one thread."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._owed = 0.0  # seconds that reading had before answering

    def add(self, job: Job) -> None:
        """Begin a job; where it ends without being fed it is over already."""
        job.go_on()
        if not job.ended:
            self.jobs.append(job)

    def round(self) -> list[Job]:
        """Feed each job that answers and one that reads. Returns those that ended."""
        answering = [job for job in self.jobs if job.wants is not None and job.wants.one]
        reading = [job for job in self.jobs if job.wants is not None and not job.wants.one]
        if answering:
            began = time.monotonic()
            feed_all(answering)
            self._owed -= time.monotonic() - began
        if reading and (not answering or self._owed <= 0):
            began = time.monotonic()
            feed(reading[0])
            self.jobs.remove(reading[0])
            self.jobs.append(reading[0])  # the others' turn
            self._owed += time.monotonic() - began
        if not (reading and answering):
            self._owed = 0.0
        over = [job for job in self.jobs if job.ended]
        self.jobs = [job for job in self.jobs if not job.ended]
        return over


def feed(job: Job) -> None:
    """Feed a job what it wants, and let it go on."""
    wants = job.wants
    assert wants is not None
    job.go_on(*outcome_of(lambda: wants.backend.extend(wants.tokens, wants.window, wants.all_logits)))


def feed_all(jobs: list[Job]) -> None:
    """Feed each of several jobs its token, in one pass where there are several; and let each go on."""
    feeds = [job.wants for job in jobs if job.wants is not None and not job.wants.all_logits]
    if len(feeds) == len(jobs) > 1:
        backend = feeds[0].backend
        given, error = outcome_of(lambda: backend.step([int(f.tokens[0, 0]) for f in feeds], [f.window for f in feeds]))
        if error is None:
            for i, job in enumerate(jobs):
                job.go_on((given[0][i : i + 1], given[1][i]))
            return
    for job in jobs:  # one after the other, so that what fails is one job's
        feed(job)


def outcome_of(run: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What run() returns, and what it raises."""
    try:
        return run(), None
    except BaseException as error:
        return None, error
