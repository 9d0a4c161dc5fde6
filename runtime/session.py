"""A conversation, or one long text, with a memory: turns, reading, undo, fork, save. The same for every backend.

Knows a loaded model, tokens and text; how tokens enter chunks is cursor.py's business, files are statefile.py's, the terminal is the commands'.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import PromptError
from .cursor import Cursor, Feeder
from .dialogue import Dialogue
from .sampling import Sampler, Sampling, new_seed
from .streaming import Detokenizer, StopStrings

if TYPE_CHECKING:
    from .loading import Model

MAX_TOKENS = 512
UNDO_TURNS = 16
UNDO_BANKS = 4
TRANSCRIPT_CHARS = 1 << 20
TURN_CHARS = 1 << 16


@dataclass(frozen=True)
class Reply:
    """What the last answer was and cost. finish: `stop` (end of turn), `stop-string`, `length`, `interrupted`. Times in seconds."""

    text: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    finish: str
    prefill_s: float
    decode_s: float


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
        if system:
            room, used = self.feeder.size // 2, len(self._head())
            if used > room:
                raise PromptError(
                    f"the system prompt has {used} tokens: it must leave half of the chunk of {self.feeder.size} free (at most {room})"
                )

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
        self._open = self._only(self._stream(content, max_tokens, stop, interrupted))
        return self._open

    def _stream(
        self, content: str, max_tokens: int, stop: Iterable[str], interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        before = self.at
        started = time.perf_counter()
        try:
            first, ids = self._turn_ids(content)
            self._begin(first, ids)
            self.at = self.feeder.logits(self.at)
        except BaseException:
            self.at = before
            raise
        prefill = time.perf_counter() - started
        yield from self._answer(before, content, first, len(ids), prefill, max_tokens, stop, interrupted)

    def complete(
        self,
        prompt: str,
        max_tokens: int = MAX_TOKENS,
        stop: Iterable[str] = (),
        ignore_eos: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Continue plain text, without a chat template. Raises PromptError for an empty prompt on an empty session."""
        self._open = self._only(self._complete(prompt, max_tokens, stop, ignore_eos, interrupted))
        return self._open

    def _complete(
        self, prompt: str, max_tokens: int, stop: Iterable[str], ignore_eos: bool, interrupted: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        before, started = self.at, time.perf_counter()
        try:
            ids = self.model.encode(prompt, add_special=self.at.seen == 0)
            self.at = self.feeder.logits(self.feeder.append(self.at, ids))
        except BaseException:
            self.at = before
            raise
        prefill = time.perf_counter() - started
        yield from self._answer(before, None, (), len(ids), prefill, max_tokens, stop, interrupted, ignore_eos)

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
        at the chunk's end, `overlap` tokens repeated. `interrupted` is asked before each chunk: what was read until then stays read.
        """
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
            self.at = self.feeder.flush(self._closed(self.feeder.append(self.at, closing)))
        except BaseException:
            self.at = before
            raise
        if chat:
            self._remember({"role": "user", "content": f"[read {title}: {count} tokens]"})
        self._keep(before)
        return count

    def undo(self) -> None:
        """Take back the last turn, across chunk borders too. Raises PromptError when there is none left (at most 16 are kept)."""
        if not self.snapshots:
            raise PromptError("there is nothing to undo" + (f" (the last {UNDO_TURNS} turns are kept)" if self.at.turns else ""))
        past, now = self.snapshots.pop(), self.at
        if past.memory is now.memory and now.chunk is not None and len(past.tokens) <= len(now.tokens):
            past = past._replace(chunk=self.feeder.backend.rewind(now.chunk, len(past.tokens)))
        del self.transcript[max(0, past.turns - self.forgotten_turns) :]
        self.at = past

    def reset(self) -> None:
        """Forget everything: the memory as it was before the first word, the transcript, and what could be undone."""
        self.at = self.feeder.new()
        self.transcript, self.snapshots, self.forgotten_turns, self.reply = [], [], 0, None

    def fork(self) -> "Session":
        """A second session that goes on from here; neither influences the other."""
        other = Session(self.model, self.system, self.sampling, self.seed, self.feeder.overlap, self.notify)
        other.at, other.snapshots = self.at.at_rest(), list(self.snapshots)
        other.transcript, other.forgotten_turns, other.created = [dict(m) for m in self.transcript], self.forgotten_turns, self.created
        return other

    def save(self, path: str | Path) -> int:
        """Write the session to a file, atomically; returns its bytes. Raises WriteError; the old file is then unchanged."""
        from .keeping import save_session

        return save_session(self, Path(path))

    @classmethod
    def restore(cls, model: "Model", path: str | Path, notify: Callable[[str], None] | None = None) -> "Session":
        """Open a saved session on this model, whichever backend it was saved from. Raises a SessionError naming the file and the remedy."""
        from .keeping import restore_session

        return restore_session(model, Path(path), notify)

    def resample(self, **changes: object) -> None:
        """Change sampling settings (fields of Sampling) from here on. Raises PromptError naming a bad one."""
        self.sampling = replace(self.sampling, **changes)  # type: ignore[arg-type]

    def _turn_ids(self, content: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a turn as the first of a chunk, and as it is fed here."""
        first = tuple(self.model.encode(self.dialogue.turn(content, first=True)))
        if not self.at.filled:
            return first, first
        return first, tuple(self.model.encode(self.dialogue.turn(content, first=False)))

    def _document_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        before, after = self.dialogue.document(first=not self.at.filled)
        return tuple(self.model.encode(before)), tuple(self.model.encode(after))

    def _head(self) -> tuple[int, ...]:
        return tuple(self.model.encode(self.dialogue.head()))

    def _begin(self, first: tuple[int, ...], ids: tuple[int, ...]) -> None:
        reserve = self.feeder.size // 8
        if self.at.filled and self.at.filled + len(ids) + reserve > self.feeder.size:
            self.at = self.feeder.commit(self.at)
            ids = first
        self.at = self.at._replace(turn=self.at.filled)
        self.at = self.feeder.append(self.at, ids, self._head() if len(ids) > self.feeder.size else ())

    def _make_room(self, prompt: tuple[int, ...], answer: list[int]) -> None:
        """The chunk is full in mid-answer: move the whole turn to a new chunk if it will fit there, else cut it."""
        moved = prompt + tuple(answer)
        if prompt and self.at.turn > 0 and len(moved) <= self.feeder.size - self.feeder.size // 8:
            self.at = self.feeder.move(self.at, moved)
        else:
            self.at = self.feeder.cut(self.at, self._head() if prompt else ())

    def _answer(
        self, before: Cursor, content: str | None, prompt: tuple[int, ...], prompt_tokens: int, prefill: float,
        max_tokens: int, stop: Iterable[str], interrupted: Callable[[], bool] | None, ignore_eos: bool = False,
    ) -> Iterator[str]:  # fmt: skip
        sampler = Sampler(self.sampling, self.seed, self.at.draws)
        words, stops = Detokenizer(self.model.text, skip_special=True), StopStrings(tuple(stop))
        answer: list[int] = []
        text: list[str] = []
        finish, started = "error", time.perf_counter()
        try:
            while len(answer) < max_tokens:
                if interrupted and interrupted():
                    finish = "interrupted"
                    break
                at = self.feeder.logits(self.at)
                assert at.logits is not None
                token = sampler.sample(at.logits, at.tokens)
                self.at = at._replace(draws=sampler.draws)
                if token in self.model.eos and not ignore_eos:
                    finish = "stop"
                    break
                if self.at.filled == self.feeder.size:
                    self._make_room(prompt, answer)
                self.at = self.at._replace(pending=(*self.at.pending, token), seen=self.at.seen + 1)
                answer.append(token)
                piece, stopped = stops.feed(words.add(token))
                if piece:
                    text.append(piece)
                    yield piece
                if stopped:
                    finish = "stop-string"
                    break
            else:
                finish = "length"
            if finish != "stop-string":
                last, stopped = stops.feed(words.flush())
                last += "" if stopped else stops.flush()
                if last:
                    text.append(last)
                    yield last
        except (GeneratorExit, KeyboardInterrupt):
            finish = "interrupted"
            raise
        finally:
            self.reply = Reply("".join(text), prompt_tokens, tuple(answer), finish, prefill, time.perf_counter() - started)
            if content is not None:
                self.at = self._closed(self.at, self.model.encode(self.dialogue.close()))
                self._remember({"role": "user", "content": content})
                self._remember({"role": "assistant", "content": self.reply.text})
            self._keep(before)

    def _only(self, generator: Generator[str, None, None]) -> Generator[str, None, None]:
        """An answer somebody stopped reading is ended before anything else begins."""
        if self._open is not None:
            self._open.close()
        return generator

    def _closed(self, at: Cursor, ids: Iterable[int] = ()) -> Cursor:
        """The cursor with a turn's closing tokens waiting; left out where the chunk has no room for them, since it ends there anyway."""
        ids = tuple(ids)
        return at._replace(pending=at.pending + ids, seen=at.seen + len(ids)) if at.filled + len(ids) <= self.feeder.size else at

    def _remember(self, message: dict[str, str]) -> None:
        """Add to the transcript, which is for people to read: bounded, oldest out first; the memory is not touched by this."""
        if len(message["content"]) > TURN_CHARS:
            message = message | {"content": message["content"][:TURN_CHARS] + f" [{len(message['content'])} characters in all]"}
        self.transcript.append(message)
        self.at = self.at._replace(turns=self.at.turns + 1)
        size = sum(len(m["content"]) for m in self.transcript)
        while size > TRANSCRIPT_CHARS:
            size -= len(self.transcript.pop(0)["content"])
            self.forgotten_turns += 1

    def _keep(self, before: Cursor) -> None:
        """Make `before` what undo returns to. Bounded in turns and in distinct banks, so that a session's size is constant."""
        self.snapshots.append(before.at_rest())
        while len(self.snapshots) > UNDO_TURNS or len({id(s.memory) for s in self.snapshots} - {id(self.at.memory)}) > UNDO_BANKS:
            self.snapshots.pop(0)

    def _committed(self, chunks: int, tokens: int) -> None:
        self.notify(f"chunk {chunks} committed to memory ({tokens} tokens)")
