"""Conversations of a task as token ids: chunks and questions rendered as a session would have them. Knows a model's template, no backend."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...models.errors import PromptError
from ...models.tasks.recall import Conversation, Turn
from ...models.text.dialogue import Dialogue
from ...models.text.rendered import encode_rendered
from .streams import Stream

if TYPE_CHECKING:
    from ..loading import Model


class Renderer:
    """Renders for one model. Every chunk begins with what a session's chunks begin with: the template's head and the system prompt.

    size: tokens a chunk may have, at most the model's T. answer: positions left free after a question. Raises PromptError where `size`
    is none, or the head leaves less than half of it.
    """

    def __init__(self, model: "Model", system: str | None = None, size: int | None = None, answer: int = 0):
        self.model = model
        whole = model.config.memory.chunk
        self.size = whole if size is None else size
        if not 1 <= self.size <= whole:
            raise PromptError(f"a chunk of {self.size} tokens must have from 1 to {whole}, the model's chunk")
        self.answer = answer
        self.dialogue = Dialogue(model.template, system, model.end_of_turn)
        self.head = len(self._encoded(lambda *said: self._under(said).head(), ()))
        if self.head > self.size // 2:
            raise PromptError(
                f"what every chunk begins with has {self.head} tokens: it must leave half of {self.size} free: shorten --system"
            )

    @property
    def room(self) -> int:
        """Tokens a chunk has beside its head."""
        return self.size - self.head

    def count(self, text: str) -> int:
        """Tokens of a text without a template."""
        return len(self.model.encode(text, plain=True))

    def around(self) -> int:
        """Tokens of a chunk that are not the message's: one message, answered in a word or two."""
        return len(self._chunk((Turn("user", "a"), Turn("assistant", "Ok.")))) - self.count("a") + 2

    def stream(self, conversation: Conversation) -> Stream:
        """The conversation's chunks, and its question asked after the last one. Raises PromptError for an answer no chunk has room for."""
        chunks = tuple(ids for turns in conversation.chunks for ids in self.chunks(turns))
        question, answer = self.question(conversation.question), self.count(conversation.answer)
        if len(question) + answer > self.model.config.memory.chunk:
            raise PromptError(
                f"a question of {len(question)} tokens and its answer {conversation.answer[:40]!r} of {answer} do not fit in a chunk of "
                f"{self.model.config.memory.chunk}: no reply can be right; take a model with larger chunks"
            )
        return Stream(chunks, question)

    def question(self, text: str) -> tuple[int, ...]:
        """The user's message as the first of a chunk, up to where the answer begins. Raises PromptError when no answer would fit after it."""
        ids = self._encoded(lambda *said: self._under(said[:-1]).turn(said[-1], first=True), (text,))
        whole = self.model.config.memory.chunk
        if len(ids) + self.answer > whole:
            raise PromptError(
                f"a question of {len(ids)} tokens and {self.answer} for the answer do not fit in a chunk of {whole}: "
                + ("give a lower --answer-tokens" if len(ids) < whole else "take a model with larger chunks")
            )
        return ids

    def chunks(self, turns: Sequence[Turn]) -> list[tuple[int, ...]]:
        """Turns as one chunk, or as several where they do not fit: cut before a user's turn, each with the head.

        Raises PromptError when one exchange alone is longer than a chunk.
        """
        whole = self._chunk(turns)
        if len(whole) <= self.size:
            return [whole]
        cuts = [i for i in range(1, len(turns)) if turns[i].role == "user"]
        for cut in reversed(cuts):
            first = self._chunk(turns[:cut])
            if len(first) <= self.size:
                return [first, *self.chunks(turns[cut:])]
        raise PromptError(
            f"an exchange of {len(self._chunk(turns[: min(cuts, default=len(turns))]))} tokens does not fit in a chunk of {self.size}"
        )

    def _chunk(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        roles = [*(["system"] if self.dialogue.system else []), *(t.role for t in turns)]

        def render(*said: str) -> str:
            return self.dialogue.template.render([{"role": role, "content": text} for role, text in zip(roles, said, strict=True)])

        return self._encoded(render, [t.content for t in turns])

    def _under(self, system: Sequence[str]) -> Dialogue:
        return self.dialogue.under(system[0]) if system else self.dialogue

    def _encoded(self, render: Callable[..., str], said: Sequence[str]) -> tuple[int, ...]:
        """Ids of `render(*said)`, the system prompt first in `said` if there is one; what the texts spell is only text."""
        encode = self.model.encode
        said = [self.dialogue.system, *said] if self.dialogue.system else said
        if all(encode(text) == encode(text, plain=True) for text in said):
            return tuple(encode(render(*said)))
        return tuple(self.model.check_ids(encode_rendered(self.model.text, render, said)))
