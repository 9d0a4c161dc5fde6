"""Whose turn it is: several jobs on one thread, which feeds the model for each in turn. Knows jobs and feeds; no queue, no session.

In a round every job that makes an answer gets a token, and one of those that read gets a piece, in rotation. Where some read and others answer, reading
waits until answering had as much time: a long document takes half of the machine, not all of it.

The first tokens that a job reads, a prompt as a rule, are no document: a token for several costs little more than a token for one, so an answer that begins
sooner holds up nobody for long. They go before answers, for BURST seconds at most, and count a quarter of their time; and in turn with long readings.
"""

import time
from collections.abc import Callable
from typing import Any

from .shared import Call, Feed
from .strand import Strand

PROMPT = 512  # tokens of a job that are read as a prompt
SHARE = 0.25  # of the time of a prompt that answering is given back
BURST = 2.0  # seconds, so counted, that prompts may be ahead of answers


class Gone(Exception):
    """Nobody waits for the job any more, or the server is stopping: it ends without an answer."""


class Job:
    """work() in a strand. ends(): whether it should end, with Gone, before it is fed again. `wants`: what it waits for, None before its begin and at its end."""

    def __init__(self, work: Callable[[], Any], ends: Callable[[], bool]):
        self.strand, self._ends = Strand(work, "lm2-job"), ends
        self.wants: Feed | None = None
        self.read = 0  # tokens of it that were fed, but for those of an answer

    @property
    def begins(self) -> bool:
        """Whether what it reads still counts as a prompt."""
        return self.read < PROMPT

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
    """The jobs that run. Used by one thread. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs: list[Job] = []
        self._clock = clock
        self._owed = 0.0  # seconds that reading had before answering
        self._began = False  # whether the last that read read its prompt

    def add(self, job: Job) -> None:
        """Begin a job; where it ends without being fed it is over already."""
        job.go_on()
        if not job.ended:
            self.jobs.append(job)

    def round(self) -> list[Job]:
        """Feed one that reads, then each job that answers; where prompts may go first, only one of those. Returns those that ended."""
        reading = self._next()
        if reading is not None:
            self._read(reading)
        if reading is None or not self._ahead():
            answering = [job for job in self.jobs if job.wants is not None and job.wants.one]
            began = self._clock()
            feed_all(answering)
            self._owed -= self._clock() - began
        wants = [job.wants.one for job in self.jobs if job.wants is not None]
        if not any(wants):
            self._owed = 0.0
        elif all(wants):
            self._owed = max(0.0, self._owed)  # nothing is saved up for readings to come
        over = [job for job in self.jobs if job.ended]
        self.jobs = [job for job in self.jobs if not job.ended]
        return over

    def _ahead(self) -> bool:
        """Whether a prompt is to be read before anybody gets a token."""
        return self._owed <= BURST and any(job.begins and job.wants is not None and not job.wants.one for job in self.jobs)

    def _next(self) -> Job | None:
        """Whose turn it is to read, if it is anybody's."""
        reading = [job for job in self.jobs if job.wants is not None and not job.wants.one]
        alone = len(reading) == sum(job.wants is not None for job in self.jobs)
        first = [job for job in reading if job.begins and (alone or self._owed <= BURST)]
        long = [job for job in reading if not job.begins and (alone or self._owed <= 0)]
        ready = long if long and (self._began or not first) else first
        return ready[0] if ready else None

    def _read(self, job: Job) -> None:
        """Feed a job that reads a piece; then the others are before it."""
        assert job.wants is not None
        self._began = job.begins
        job.read += job.wants.tokens.shape[1]
        began = self._clock()
        feed(job)
        self.jobs.remove(job)
        self.jobs.append(job)
        self._owed += (self._clock() - began) * (SHARE if self._began else 1.0)


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
