"""What `lm2 chat` keeps beside its session: the file and its lock, limits, and how an answer is shown and saved. Knows no command line."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.errors import LM2Error
from .common import megabytes, need_file, soft_interrupt, write_out

if TYPE_CHECKING:
    from ..session.session import Session
    from ..statefile.lock import SessionLock


class Talk:
    """What the chat keeps beside the session: its file and lock, limits, and how much to say."""

    def __init__(self, session: "Session", max_tokens: int, stop: tuple[str, ...], terminal: bool):
        self.session, self.max_tokens, self.stop, self.terminal = session, max_tokens, stop, terminal
        self.file: Path | None = None
        self.lock: SessionLock | None = None
        self._work: threading.Thread | None = None

    def answer(self, text: str) -> bool:
        """One turn: streams the answer to stdout, then saves. False when it was interrupted."""
        from ..session.reading import check_message

        check_message(text, "the message")
        return self._show(lambda interrupted: self.session.stream(text, self.max_tokens, self.stop, interrupted))

    def again(self) -> bool:
        """The last message answered once more; as `answer`."""
        return self._show(lambda interrupted: self.session.again(self.max_tokens, self.stop, interrupted))

    def _show(self, begin: Callable[[Callable[[], bool]], Iterator[str]]) -> bool:
        """Raises KeyboardInterrupt only where the session is as it was: a second Ctrl-C before the answer began. What was answered is kept and
        saved first where nobody reads on (OSError) or the command is ended (Ended)."""
        before = self.session.at
        with soft_interrupt() as interrupted:
            try:
                self._write(begin(interrupted))
            except KeyboardInterrupt:
                self.session.settle()
                if self.session.at is before:
                    raise
            except LM2Error:
                raise
            except OSError:
                self.session.settle()
                if self.session.at is not before:
                    self.autosave()
                raise
            try:
                write_out("\n")
            finally:
                self.autosave()
            reply = self.session.reply
            return not interrupted() and (reply is None or reply.finish != "interrupted")

    def _write(self, pieces: Iterator[str]) -> None:
        shown = False
        try:
            for piece in pieces:
                write_out(piece)
                shown = True
        except LM2Error:
            if shown:
                write_out("\n")
            raise

    def ahead(self) -> None:
        """While the user types: what the next turn would wait for (Session.ahead). `rest` waits for it, and comes before anything else is done."""

        def work() -> None:
            with contextlib.suppress(LM2Error):  # the next turn meets it again, and says so
                self.session.ahead()

        self._work = threading.Thread(target=work, daemon=True)
        self._work.start()

    def rest(self) -> None:
        """Wait for what is done ahead."""
        if self._work is not None:
            self._work.join()
            self._work = None

    def autosave(self) -> None:
        if self.file is not None:
            self.session.save(self.file)

    def go_on_in(self, path: Path, ready: Callable[[Path], "Session"]) -> None:
        """Make `path` the chat's file and what `ready(path)` returns its session, under the file's lock.

        Whatever fails, the chat stays where it was. Raises SessionLockedError, and what `ready` raises.
        """
        from ..statefile.lock import SessionLock

        need_file(path)
        same = self.file is not None and os.path.realpath(self.file) == os.path.realpath(path)
        lock = None if same else SessionLock(path).acquire()
        try:
            session = ready(path)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if lock is not None:
            self.close()
            self.lock = lock
        self.session, self.file = session, path

    def close(self) -> None:
        self.rest()
        if self.lock is not None:
            self.lock.release()
        self.lock = self.file = None

    def status(self) -> str:
        """`23.1 tokens/s · window 143/2048 · 143 tokens in memory · 4.7 MB state`"""
        session, reply = self.session, self.session.reply
        parts = []
        if reply is not None and reply.tokens and reply.decode_s > 0:
            parts.append(f"{len(reply.tokens) / reply.decode_s:.1f} tokens/s")
        parts.append(f"window {session.at.filled}/{session.feeder.size}")
        if session.model.remembers:
            parts.append(f"{session.at.written} tokens in memory")
            parts.append(f"{megabytes(session.model.backend.describe().state_bytes)} state")
        else:
            parts.append("no memory")
        return " · ".join(parts)
