"""A conversation, or one long text, with a memory: turns, reading, undo, fork, save. The same for every backend.

Knows a loaded model, tokens and text; how tokens enter windows is cursor.py's business and its rules', files are statefile's, the terminal is the commands'.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.errors import PromptError
from ...models.tasks.natural.answers import mentions
from ..backend import MemoryState
from ..statefile.keeping import Kept, restore, save, unusable
from .answer import Answer, Reply
from .beside import FullError, Side, answering
from .chunks import Chunks
from .cursor import Cursor
from .forgetting import Forgetting, Forgotten
from .held import Held, frames_of, held_turns, no_words, wording
from .recalling import Passage, Recalling
from .sampling import Sampling, new_seed
from .saying import NOTHING, Given, Text
from .transcript import last_exchange, remember, shortened
from .windows import Windows
from .wording import Wording

if TYPE_CHECKING:
    from ..loading import Model

MAX_TOKENS = 512
UNDO_TURNS = 16
UNDO_BANKS = 4
WINDOW_MIN = 16


class Session:
    """One conversation. Attributes to read: `transcript`, `reply` (the last one), `at` (position), `system`, `seed`.

    system: system prompt, or None for the template's own. sampling: see Sampling. seed: None draws one (read it from `.seed`).
    overlap: tokens repeated where a text longer than a window is cut (default an eighth of a window). notify(text) hears of folds and slides.
    `chosen`, None until it is set: hears (logits (v,), token) of each token of an answer.
    window: the last tokens kept word for word (default: `model.window`). recall: messages that ask for what was told are answered from it, where the
    model has a recall; `recalled` is what the last answer came from. Raises PromptError for a window the model cannot have, or a system prompt
    that leaves no room in it.
    """

    def __init__(
        self,
        model: "Model",
        system: str | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        overlap: int | None = None,
        notify: Callable[[str], None] | None = None,
        window: int | None = None,
        recall: bool = True,
    ):
        self.model = model
        self.system = system
        self.sampling = sampling or model.sampling
        self.seed = new_seed() if seed is None else seed
        self.notify = notify or (lambda text: None)
        size = checked_window(model, window)
        rule = Chunks if model.config.memory.cell == "released" else Windows
        noting = model.remembers and rule is Windows
        self.feeder = rule(model.backend, size, size // 8 if overlap is None else overlap, self._written, self._slid, noting=noting)
        self.wording = Wording(model, system, size)
        self.at = self.feeder.new()
        self.transcript: list[dict[str, str]] = []
        self.numbers: list[int] = []  # the turn of each message of the transcript
        self.forgotten_turns = 0
        self.snapshots: list[Cursor] = []
        self.reply: Reply | None = None
        self.created = ""
        self.chosen: Callable[[np.ndarray, int], None] | None = None
        self.recalling = Recalling(model.recall, partial(model.encode, plain=True)) if recall and model.recall is not None else None
        self.recalled: list[Passage] = []
        self._open: Generator[str, None, None] | None = None
        if system:
            self.wording.head()

    def say(self, content: str, max_tokens: int = MAX_TOKENS, stop: Iterable[str] = ()) -> str:
        """Answer one user message; the whole answer as text. See `stream`."""
        return "".join(self.stream(content, max_tokens, stop))

    def stream(
        self, content: str, max_tokens: int = MAX_TOKENS, stop: Iterable[str] = (), interrupted: Callable[[], bool] | None = None
    ) -> Generator[str, None, None]:
        """Answer one user message piece by piece. `interrupted` is asked before every token.

        However it ends (end of turn, `max_tokens`, a stop string, closing the iterator, Ctrl-C), the session is left at a turn's end with
        what was answered so far; an error or an interrupt before the answer began leaves it as it was. Raises PromptError for an empty message.
        """
        if not content.strip():
            raise PromptError("the message is empty: write something")
        return self._only(self._stream(content, max_tokens, stop, interrupted))

    def again(
        self, max_tokens: int = MAX_TOKENS, stop: Iterable[str] = (), interrupted: Callable[[], bool] | None = None
    ) -> Generator[str, None, None]:
        """Answer the last message once more, in place of the last answer, with further random numbers. See `stream`.

        Raises PromptError when the last thing that happened was not an answer, or its message was too long to be kept over a restore.
        """
        self.settle()
        message = last_exchange(self.transcript)
        if message is None or not self.snapshots or (self.reply is not None and self.reply.message is None):
            raise PromptError("there is no answer to make again")
        if self.reply is not None and self.reply.message is not None:
            message = self.reply.message
        elif shortened(message):
            raise PromptError("the last message was too long to be kept whole: undo, and send it again")
        return self._only(self._again(message, max_tokens, stop, interrupted))

    def complete(
        self,
        prompt: str,
        max_tokens: int = MAX_TOKENS,
        stop: Iterable[str] = (),
        ignore_eos: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Continue plain text, without a chat template. Raises PromptError for an empty prompt on an empty session."""
        return self._only(self._complete(prompt, max_tokens, stop, ignore_eos, interrupted))

    def settle(self) -> None:
        """End an answer that somebody stopped reading: what was said so far is kept. Everything that changes or saves the session does this first."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def read(
        self,
        text: str | Iterable[str],
        title: str = "text",
        chat: bool = True,
        interrupted: Callable[[], bool] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Read a text of any length into the memory, as a message that is not answered (`chat`) or as plain text. Returns its tokens.

        `text` may come in pieces, cut where a tokenizer may be cut (at line ends). What fits stays in the window; a longer text is cut
        at its end, `overlap` tokens repeated (the system prompt is not). `interrupted` is asked before each window: what was
        read until then stays read. An error leaves the session as it was.
        """
        self.settle()
        before = self.at
        pieces = [text] if isinstance(text, str) else text
        opening, closing = ((), ()) if not chat else self.wording.document(first=not self.at.filled)
        count = 0
        try:
            held = iter(pieces)
            ids = self.model.encode(next(held, ""), add_special=not chat and self.at.seen == 0, plain=True)
            if chat:
                self.at = self.feeder.before_document(self.at, len(opening) + len(ids) + len(closing), self.wording.head())
                opening, closing = self.wording.document(first=not self.at.filled)
                self.at = self.at._replace(starts=(*self.at.starts, self.at.filled or len(self.wording.head())))
            self.at = self.feeder.opened(self.at, len(self.wording.head() if chat else self.wording.beginning(tuple(ids))))
            self.at = self.feeder.append(self.at, opening)
            while True:
                for begin in range(0, len(ids), self.feeder.size):
                    if interrupted and interrupted():
                        break
                    block = ids[begin : begin + self.feeder.size]
                    self.at = self.feeder.append(self.at, block, () if chat else self.wording.beginning(self.at.tokens + self.at.pending))
                    if self.at.filled >= self.feeder.size // 2:
                        self.at = self.feeder.flush(self.at)
                    count += len(block)
                    if progress:
                        progress(count)
                following = None if interrupted and interrupted() else next(held, None)
                if following is None:
                    break
                ids = self.model.encode(following, plain=True)
            self.at = self.feeder.flush(self.feeder.close(self.at, closing, self.wording.head() if chat else self.wording.beginning(self.at.tokens + self.at.pending)))
        except BaseException:
            self.at = before
            raise
        if chat:
            name = title.encode("utf-8", "replace").decode("utf-8")
            self._remember("user", f"[read {name}: {count} tokens]")
            self.reply, self.recalled = None, []
        self._keep(before)
        return count

    def hear(self, content: str, answer: str) -> None:
        """Take a turn that was answered elsewhere: message and answer as they are, nothing is chosen; fed when next needed. Raises PromptError for an empty message."""
        if not content.strip():
            raise PromptError("the message is empty: write something")
        self.settle()
        before = self.at
        try:
            first = self.wording.turn(content, first=True)
            later = self.wording.turn(content, first=False) if self.at.filled else first
            self._hear(first, later, self.model.encode(answer, plain=True))
            self.at = self.feeder.close(self.at, self.wording.closing(), self.wording.head())
        except BaseException:
            self.at = before
            raise
        self.reply, self.recalled = None, []
        self._remember("user", content)
        self._remember("assistant", answer)
        self._keep(before)

    def _hear(self, first: tuple[int, ...], later: tuple[int, ...], said: Sequence[int]) -> None:
        """Take a turn's tokens and those of its answer, without the turn's end."""
        self.at = self.feeder.begin(self.at, first, later, self.wording.head())
        for n, token in enumerate(said):
            if self.at.filled == self.feeder.size:
                self.at = self.feeder.room(self.at, first, said[:n], self.wording.head())
            self.at = self.at._replace(pending=(*self.at.pending, token), seen=self.at.seen + 1)

    def ahead(self) -> None:
        """Do what the next turn would wait for: leave a window that is nearly full, and read what goes on into the next. Changes nothing of what is said."""
        self.settle()
        if isinstance(self.feeder, Windows):
            self.at = self.feeder.ahead(self.at, self.wording.head())

    def memory(self) -> MemoryState:
        """The memory as it stands, with everything up to the last turn's end in it."""
        self.settle()
        self.at = self.feeder.flush(self.at)
        return self.at.memory if self.at.window is None else self.model.backend.memory(self.at.window)

    def held(self, limit: int | None = None) -> list[Held]:
        """What the memory holds, turn by turn, most strongly first; turns that are in the window alone follow. `limit`: as many of them.

        Raises PromptError for cell released, whose rows are not noted.
        """
        self._need_notes()
        self.memory()
        tokenizer = self.model.tokenizer
        words = no_words if tokenizer is None else wording(tokenizer, frames_of(tokenizer, self.wording.dialogue))
        return held_turns(self.at.noted(), self.at.spans, self.at.tokens + self.at.pending, words, limit)

    def forget(self, number: int) -> Forgotten:
        """Take turn `number` (as `held` tells them) out of the memory, the window, the transcript and what can be undone.

        The window's other turns are run again when the session goes on. Turns that repeat what was said are others' and stay.
        Raises PromptError where there is no such turn, and for cell released.
        """
        self._need_notes()
        if number <= 0:
            raise PromptError(f"turn {number} cannot be forgotten: turns are numbered from 1, /memory shows them")
        self.memory()
        forgetting, said = Forgetting(self.model.backend, number), self.numbers.count(number)
        if not said and not any(map(forgetting.knows, (self.at, *self.snapshots))):
            raise PromptError(f"there is no turn {number} (the last one is {self.at.number}): /memory shows those there are")
        noted, before = self.at.noted(), self.at
        rows = 0 if noted is None else int(noted.of(number).sum())
        at = forgetting.without(self.at, said)
        later = [s for s in self.snapshots if s.number != number - 1]  # where the turn began, and where it ended, are now the same
        snapshots = [forgetting.without(s, said if s.number >= number else 0) for s in later]
        if number == before.number:
            self.reply = None
        self.recalled = [p for p in self.recalled if p.number != number and self.reply is not None]
        self.at, self.snapshots = at, snapshots
        kept = [(m, n) for m, n in zip(self.transcript, self.numbers, strict=True) if n != number]
        self.transcript, self.numbers = [m for m, _ in kept], [n for _, n in kept]
        return Forgotten(rows, before.filled - at.filled, said, len(snapshots))

    def head(self) -> tuple[int, ...]:
        """Tokens that every window begins with: the system prompt, given or the template's own. Raises PromptError if they leave less than half of one."""
        return self.wording.head()

    def undo(self) -> None:
        """Take back the last turn, across windows too. Raises PromptError when there is none left (at most 16 are kept)."""
        self.settle()
        self._undo()

    def reset(self) -> None:
        """Forget everything: the memory as it was before the first word, the transcript, and what could be undone."""
        self.settle()
        self.at = self.feeder.new()
        self.transcript, self.numbers, self.snapshots, self.forgotten_turns, self.reply, self.recalled = [], [], [], 0, None, []

    def fork(self) -> "Session":
        """A second session that goes on from here; neither influences the other."""
        self.settle()
        other = Session(self.model, self.system, self.sampling, self.seed, self.feeder.overlap, self.notify, self.feeder.size, self.recalling is not None)
        other.at, other.snapshots = self.at.at_rest(), list(self.snapshots)
        other.transcript, other.forgotten_turns, other.created = [dict(m) for m in self.transcript], self.forgotten_turns, self.created
        other.numbers = list(self.numbers)
        return other

    def save(self, path: str | Path) -> int:
        """Write the session to a file, atomically; returns its bytes. Raises WriteError; the old file is then unchanged."""
        self.settle()
        kept = Kept(
            self.system, self.sampling, self.seed, self.feeder.overlap, self.feeder.size, self.at,
            self.snapshots, self.transcript, self.numbers, self.forgotten_turns, self.created,
        )  # fmt: skip
        written, self.created = save(self.model, kept, Path(path))
        return written

    @classmethod
    def restore(cls, model: "Model", path: str | Path, notify: Callable[[str], None] | None = None) -> "Session":
        """Open a saved session on this model, whichever backend it was saved from. Raises a SessionError naming the file and the remedy."""
        kept = restore(model, Path(path))
        try:
            session = cls(model, kept.system, kept.sampling, kept.seed, kept.overlap, notify, kept.window)
        except PromptError as error:
            raise unusable(Path(path), error) from None
        session.at, session.snapshots = kept.at, kept.snapshots
        session.transcript, session.forgotten_turns, session.created = kept.transcript, kept.forgotten_turns, kept.created
        session.numbers = kept.numbers
        return session

    def _only(self, generator: Generator[str, None, None]) -> Generator[str, None, None]:
        """Make `generator` the answer under way."""
        self.settle()
        self._open = generator
        return generator

    def _stream(
        self, content: str, max_tokens: int, stop: Iterable[str], interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        before, started = self.at, time.perf_counter()
        try:
            answer = Answer(self.model, self.sampling, self.seed, self.at.draws, stop)
            self.wording.head()
            first = self.wording.turn(content, first=True)
            later = self.wording.turn(content, first=False) if self.at.filled else first
            closing = self.wording.closing()
            side = self.beside(content)
            if side is None:
                self.at = self.feeder.begin(self.at, first, later, self.wording.head())
                self.at = self.feeder.logits(self.at)
            else:
                side.at = side.feeder.logits(side.at)
        except BaseException:
            self.at = before
            raise
        self.recalled = [] if side is None else side.found
        if side is not None:
            self.notify("answered from what was said: " + "; ".join(f"turn {p.number}, {p.text[:60]!r}" for p in side.found))
        prefill = time.perf_counter() - started
        prompt = len(later) if side is None else side.prompt
        try:
            yield from self._answer(self if side is None else side, answer, first, max_tokens, interrupted, NOTHING if side is None else side.given)
        finally:
            self.reply = Reply(
                answer.text, content, prompt, tuple(answer.tokens), answer.finish, prefill, time.perf_counter() - started - prefill
            )
            try:
                if side is not None:
                    self._hear(first, later, answer.tokens)
                    self.at = self.at._replace(draws=answer.draws)
                self.at = self.feeder.close(self.at, closing, self.wording.head())
            except BaseException:  # a window that cannot be left: the turn cannot be kept
                self.at, self.reply, self.recalled = before, None, []
                raise
            self._remember("user", content)
            self._remember("assistant", answer.text)
            self._keep(before)

    def beside(self, content: str) -> Side | None:
        """A window in which `content` is answered from what it asks for; None where it asks for nothing told, or nothing that was told fits."""
        if self.recalling is None:
            return None
        passages = self.recalling.passages(self.transcript, self.numbers)
        read = self.recalling.read(content, passages, self.recalling.nearest(content, passages))
        if not read.near:
            return None
        text = Text(partial(self.model.encode, plain=True), self.model.text.decode, self.model.eos, mentions)
        head = self.wording.head() if self.system else ()
        return answering(
            self.model.backend, self.recalling.recall, self.recalling.unsaid, lambda text: (*head, *self.wording.turn(text, first=False)), passages, read.near, content,
            lambda tokens: self.feeder.on_feed(0), read.words, text, read.sure,  # none of the conversation's own tokens
        )

    def _complete(
        self, prompt: str, max_tokens: int, stop: Iterable[str], ignore_eos: bool, interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        before, started = self.at, time.perf_counter()
        try:
            answer = Answer(self.model, self.sampling, self.seed, self.at.draws, stop, ignore_eos, continuing=True)
            ids = self.model.encode(prompt, add_special=self.at.seen == 0)
            self.at = self.feeder.opened(self.at, len(self.wording.beginning(tuple(ids))))
            self.at = self.feeder.logits(self.feeder.append(self.at, ids, self.wording.beginning(self.at.tokens + self.at.pending)))
        except BaseException:
            self.at = before
            raise
        self.recalled = []
        prefill = time.perf_counter() - started
        try:
            yield from self._answer(self, answer, (), max_tokens, interrupted)
        finally:
            self.reply = Reply(
                answer.text, None, len(ids), tuple(answer.tokens), answer.finish, prefill, time.perf_counter() - started - prefill
            )
            self._keep(before)

    def _again(
        self, message: str, max_tokens: int, stop: Iterable[str], interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        old = self.at.at_rest(), list(self.snapshots), list(self.transcript), self.forgotten_turns, self.reply, self.recalled
        numbers = list(self.numbers)
        self._undo()
        self.at = undone = self.at._replace(draws=old[0].draws)
        try:
            yield from self._stream(message, max_tokens, stop, interrupted)
        except BaseException:
            if self.at is undone:  # the new answer never began: keep the old one
                self.at, self.snapshots, self.transcript, self.forgotten_turns, self.reply, self.recalled = old
                self.numbers = numbers
            raise

    def _answer(
        self, place: "Session | Side", answer: Answer, prompt: tuple[int, ...], max_tokens: int, interrupted: Callable[[], bool] | None,
        given: Given = NOTHING,
    ) -> Generator[str, None, None]:  # fmt: skip
        """Feed back what is chosen until the answer ends, in the session's window or in one beside it. prompt: the turn's tokens at a window's start, empty for plain text.
        given: what the answer begins with."""
        begins = iter(zip(*given, strict=True))
        try:
            while len(answer.tokens) < max_tokens:
                if interrupted and interrupted():
                    answer.finish = "interrupted"
                    break
                if (begun := next(begins, None)) is not None:
                    token, logits = begun
                else:
                    at = place.feeder.logits(place.at)
                    assert at.logits is not None
                    logits, recent = at.logits, at.tokens if at.opening is None else at.tokens[at.opening.positions :]
                    chosen = answer.choose(logits, recent)
                    place.at = at._replace(draws=answer.draws)
                    if chosen is None:
                        break
                    token = chosen
                if self.chosen is not None:
                    self.chosen(logits, token)
                if place.at.filled == place.feeder.size:
                    head = self.wording.head() if prompt else self.wording.beginning(place.at.tokens + place.at.pending)
                    try:
                        place.at = place.feeder.room(place.at, prompt, answer.tokens, head)
                    except FullError:
                        break
                place.at = place.at._replace(pending=(*place.at.pending, token), seen=place.at.seen + 1)
                if piece := answer.add(token):
                    yield piece
                if answer.finish:
                    break
            if last := answer.end("length"):
                yield last
        except (GeneratorExit, KeyboardInterrupt):
            answer.finish = answer.finish or "interrupted"
            raise
        finally:
            answer.end("error")

    def _remember(self, role: str, content: str) -> None:
        dropped = remember(self.transcript, role, content)
        self.numbers = [*self.numbers, self.at.number][dropped:]
        self.forgotten_turns += dropped
        self.at = self.at._replace(turns=self.at.turns + 1)

    def _keep(self, before: Cursor) -> None:
        """Make `before` what undo returns to. Bounded in turns and in distinct banks, so that a session's size is constant."""
        self.snapshots.append(before.at_rest())
        while len(self.snapshots) > UNDO_TURNS or len({id(s.memory) for s in self.snapshots} - {id(self.at.memory)}) > UNDO_BANKS:
            self.snapshots.pop(0)

    def _undo(self) -> None:
        if not self.snapshots:
            raise PromptError("there is nothing to undo" + (f" (the last {UNDO_TURNS} turns are kept)" if self.at.turns else ""))
        past, now = self.snapshots.pop(), self.at
        if past.memory is now.memory and now.window is not None and not now.window.stale and now.window.folded <= past.filled <= now.window.length:
            past = past._replace(
                window=self.feeder.backend.rewind(now.window, past.filled), tokens=past.tokens + past.pending, pending=(), logits=None,
                held=now.held,
            )  # fmt: skip
        left = max(0, past.turns - self.forgotten_turns)
        del self.transcript[left:], self.numbers[left:]
        self.forgotten_turns = min(self.forgotten_turns, past.turns)
        self.at, self.reply, self.recalled = past, None, []

    def _need_notes(self) -> None:
        if self.model.config.memory.cell == "released":
            raise PromptError("cell released mixes its rows in every layer, so no row is one turn's: /undo takes back the last turns, /reset all of them")

    def _written(self, tokens: int, written: int) -> None:
        if self.model.remembers:
            self.notify(f"{tokens} tokens went into the memory ({written} in all)")

    def _slid(self, carried: int) -> None:
        older = "in the memory alone" if self.model.remembers else "forgotten"
        self.notify(f"the window was full: {carried} tokens are carried over into a new one, what is older is {older}")


def checked_window(model: "Model", window: int | None) -> int:
    """A session's window, in tokens. Raises PromptError naming the window asked for and what the model can have."""
    memory, most = model.config.memory, model.config.max_position_embeddings
    if window is None or window == model.window:
        return model.window
    if memory.cell == "released" and window != memory.chunk:
        raise PromptError(f"--window {window}: cell released has windows of its chunk, {memory.chunk} tokens: leave --window out")
    if not WINDOW_MIN <= window <= most:
        raise PromptError(f"--window {window} must be from {WINDOW_MIN} to {most}, the model's positions: choose another window")
    return window
