"""A conversation, or one long text, with a memory: turns, reading, undo, fork, save. The same for every backend.

Knows a loaded model, tokens and text; how tokens enter chunks is cursor.py's business, files are statefile.py's, the terminal is the commands'.
"""

import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.errors import PromptError
from ...models.text.dialogue import Dialogue
from ...models.text.rendered import encode_document, encode_head, encode_turn
from ..statefile.keeping import Kept, restore, save, unusable
from .answer import Answer, Reply
from .cursor import Cursor, Feeder
from .sampling import Sampling, new_seed
from .transcript import last_exchange, remember, shortened

if TYPE_CHECKING:
    from ..loading import Model

MAX_TOKENS = 512
UNDO_TURNS = 16
UNDO_BANKS = 4


class Session:
    """One conversation. Attributes to read: `transcript`, `reply` (the last one), `at` (position), `system`, `seed`.

    system: system prompt, or None for the template's own. sampling: see Sampling. seed: None draws one (read it from `.seed`).
    overlap: tokens repeated where a turn longer than a chunk is cut (default an eighth of a chunk). notify(text) hears of commits.
    Raises PromptError for a system prompt that leaves no room in a chunk.
    """

    def __init__(
        self,
        model: "Model",
        system: str | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        overlap: int | None = None,
        notify: Callable[[str], None] | None = None,
    ):
        self.model = model
        self.system = system
        self.sampling = sampling or model.sampling
        self.seed = new_seed() if seed is None else seed
        self.notify = notify or (lambda text: None)
        self.feeder = Feeder(model.backend, model.config.memory.chunk // 8 if overlap is None else overlap, self._committed)
        self.dialogue = Dialogue(model.template, system, model.end_of_turn)
        self.at = self.feeder.new()
        self.transcript: list[dict[str, str]] = []
        self.forgotten_turns = 0
        self.snapshots: list[Cursor] = []
        self.reply: Reply | None = None
        self.created = ""
        self._open: Generator[str, None, None] | None = None
        self._opening: tuple[int, ...] | None = None
        if system:
            self._head()

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
        at the chunk's end, `overlap` tokens repeated (the system prompt is not). `interrupted` is asked before each chunk: what was
        read until then stays read. An error leaves the session as it was.
        """
        self.settle()
        before = self.at
        pieces = [text] if isinstance(text, str) else text
        opening, closing = ((), ()) if not chat else self._document_ids()
        count = 0
        try:
            held = iter(pieces)
            ids = self.model.encode(next(held, ""), add_special=not chat and self.at.seen == 0, plain=True)
            if chat and self.at.filled and self.at.filled + len(opening) + len(ids) + len(closing) > self.feeder.size:
                self.at = self.feeder.commit(self.at)
                opening, closing = self._document_ids()
            if chat:
                self._repeat_head()
            self.at = self.feeder.append(self.at, opening)
            while True:
                for begin in range(0, len(ids), self.feeder.size):
                    if interrupted and interrupted():
                        break
                    block = ids[begin : begin + self.feeder.size]
                    self.at = self.feeder.append(self.at, block)
                    if self.at.filled >= self.feeder.size // 2:
                        self.at = self.feeder.flush(self.at)
                    count += len(block)
                    if progress:
                        progress(count)
                following = None if interrupted and interrupted() else next(held, None)
                if following is None:
                    break
                ids = self.model.encode(following, plain=True)
            self.at = self.feeder.flush(self.feeder.append(self.at, closing))
        except BaseException:
            self.at = before
            raise
        if chat:
            name = title.encode("utf-8", "replace").decode("utf-8")
            self._remember("user", f"[read {name}: {count} tokens]")
            self.reply = None
        self._keep(before)
        return count

    def undo(self) -> None:
        """Take back the last turn, across chunk borders too. Raises PromptError when there is none left (at most 16 are kept)."""
        self.settle()
        self._undo()

    def reset(self) -> None:
        """Forget everything: the memory as it was before the first word, the transcript, and what could be undone."""
        self.settle()
        self.at = self.feeder.new()
        self.transcript, self.snapshots, self.forgotten_turns, self.reply = [], [], 0, None

    def fork(self) -> "Session":
        """A second session that goes on from here; neither influences the other."""
        self.settle()
        other = Session(self.model, self.system, self.sampling, self.seed, self.feeder.overlap, self.notify)
        other.at, other.snapshots = self.at.at_rest(), list(self.snapshots)
        other.transcript, other.forgotten_turns, other.created = [dict(m) for m in self.transcript], self.forgotten_turns, self.created
        return other

    def save(self, path: str | Path) -> int:
        """Write the session to a file, atomically; returns its bytes. Raises WriteError; the old file is then unchanged."""
        self.settle()
        kept = Kept(
            self.system, self.sampling, self.seed, self.feeder.overlap, self.at,
            self.snapshots, self.transcript, self.forgotten_turns, self.created,
        )  # fmt: skip
        written, self.created = save(self.model, kept, Path(path))
        return written

    @classmethod
    def restore(cls, model: "Model", path: str | Path, notify: Callable[[str], None] | None = None) -> "Session":
        """Open a saved session on this model, whichever backend it was saved from. Raises a SessionError naming the file and the remedy."""
        kept = restore(model, Path(path))
        try:
            session = cls(model, kept.system, kept.sampling, kept.seed, kept.overlap, notify)
        except PromptError as error:
            raise unusable(Path(path), error) from None
        session.at, session.snapshots = kept.at, kept.snapshots
        session.transcript, session.forgotten_turns, session.created = kept.transcript, kept.forgotten_turns, kept.created
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
            self._head()
            first = self._turn_ids(content, first=True)
            later = self._turn_ids(content, first=False) if self.at.filled else first
            closing = self.model.encode(self.dialogue.close())
            self._begin(first, later)
            self.at = self.feeder.logits(self.at)
        except BaseException:
            self.at = before
            raise
        prefill = time.perf_counter() - started
        try:
            yield from self._answer(answer, first, max_tokens, interrupted)
        finally:
            self.reply = Reply(
                answer.text, content, len(later), tuple(answer.tokens), answer.finish, prefill, time.perf_counter() - started - prefill
            )
            self.at = self._closed(self.at, closing)
            self._remember("user", content)
            self._remember("assistant", answer.text)
            self._keep(before)

    def _complete(
        self, prompt: str, max_tokens: int, stop: Iterable[str], ignore_eos: bool, interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        before, started = self.at, time.perf_counter()
        try:
            answer = Answer(self.model, self.sampling, self.seed, self.at.draws, stop, ignore_eos, continuing=True)
            ids = self.model.encode(prompt, add_special=self.at.seen == 0)
            self.at = self.feeder.logits(self.feeder.append(self.at, ids))
        except BaseException:
            self.at = before
            raise
        prefill = time.perf_counter() - started
        try:
            yield from self._answer(answer, (), max_tokens, interrupted)
        finally:
            self.reply = Reply(
                answer.text, None, len(ids), tuple(answer.tokens), answer.finish, prefill, time.perf_counter() - started - prefill
            )
            self._keep(before)

    def _again(
        self, message: str, max_tokens: int, stop: Iterable[str], interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        old = self.at.at_rest(), list(self.snapshots), list(self.transcript), self.forgotten_turns, self.reply
        self._undo()
        self.at = undone = self.at._replace(draws=old[0].draws)
        try:
            yield from self._stream(message, max_tokens, stop, interrupted)
        except BaseException:
            if self.at is undone:  # the new answer never began: keep the old one
                self.at, self.snapshots, self.transcript, self.forgotten_turns, self.reply = old
            raise

    def _answer(
        self, answer: Answer, prompt: tuple[int, ...], max_tokens: int, interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        """Feed back what is chosen until the answer ends. prompt: the turn's tokens at a chunk's start, empty for plain text."""
        try:
            while len(answer.tokens) < max_tokens:
                if interrupted and interrupted():
                    answer.finish = "interrupted"
                    break
                at = self.feeder.logits(self.at)
                assert at.logits is not None
                token = answer.choose(at.logits, at.tokens)
                self.at = at._replace(draws=answer.draws)
                if token is None:
                    break
                if self.at.filled == self.feeder.size:
                    self._make_room(prompt, answer.tokens)
                self.at = self.at._replace(pending=(*self.at.pending, token), seen=self.at.seen + 1)
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

    def _begin(self, first: tuple[int, ...], later: tuple[int, ...]) -> None:
        """Add a turn: `later` where it fits with an eighth of a chunk to spare for the answer, else `first` in a new chunk."""
        if self.at.filled and self.at.filled + len(later) + self.feeder.size // 8 > self.feeder.size:
            self.at = self.feeder.commit(self.at)
        self._repeat_head()
        ids = later if self.at.filled else first
        self.at = self.at._replace(turn=self.at.filled)
        self.at = self.feeder.append(self.at, ids, self._head() if len(ids) > self.feeder.size else ())

    def _make_room(self, prompt: tuple[int, ...], answer: list[int]) -> None:
        """The chunk is full in mid-answer: move the whole turn to a new chunk if it will fit there, else cut it."""
        moved = prompt + tuple(answer)
        if prompt and self.at.turn > 0 and len(moved) <= self.feeder.size - self.feeder.size // 8:
            self.at = self.feeder.move(self.at, moved)
        else:
            self.at = self.feeder.cut(self.at, self._head() if prompt else ())

    def _turn_ids(self, content: str, first: bool) -> tuple[int, ...]:
        """A turn's tokens. Whatever the message spells, it cannot end the turn or begin another's."""
        return tuple(self.model.check_ids(encode_turn(self.model.text, self.dialogue, content, first)))

    def _document_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        before, after = encode_document(self.model.text, self.dialogue, first=not self.at.filled)
        return tuple(self.model.check_ids(before)), tuple(self.model.check_ids(after))

    def _head(self) -> tuple[int, ...]:
        """What every chunk begins with. Raises PromptError if it leaves less than half of a chunk."""
        if self._opening is None:
            ids = tuple(self.model.check_ids(encode_head(self.model.text, self.dialogue)))
            room = self.feeder.size // 2
            if len(ids) > room:
                raise PromptError(
                    f"the system prompt has {len(ids)} tokens: it must leave half of the chunk of {self.feeder.size} free (at most {room})"
                )
            self._opening = ids
        return self._opening

    def _repeat_head(self) -> None:
        """A turn that begins a further chunk repeats the head: its tokens were counted before."""
        if not self.at.filled and self.at.memory.chunks:
            self.at = self.at._replace(seen=self.at.seen - len(self._head()))

    def _closed(self, at: Cursor, ids: Iterable[int]) -> Cursor:
        """The cursor with a turn's closing tokens waiting; left out where the chunk has no room for them, since it ends there anyway."""
        ids = tuple(ids)
        return at._replace(pending=at.pending + ids, seen=at.seen + len(ids)) if at.filled + len(ids) <= self.feeder.size else at

    def _remember(self, role: str, content: str) -> None:
        self.forgotten_turns += remember(self.transcript, role, content)
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
        if past.memory is now.memory and now.chunk is not None and len(past.tokens) <= len(now.tokens):
            past = past._replace(chunk=self.feeder.backend.rewind(now.chunk, len(past.tokens)))
        del self.transcript[max(0, past.turns - self.forgotten_turns) :]
        self.forgotten_turns = min(self.forgotten_turns, past.turns)
        self.at, self.reply = past, None

    def _committed(self, chunks: int, tokens: int) -> None:
        self.notify(f"chunk {chunks} committed to memory ({tokens} tokens)")
