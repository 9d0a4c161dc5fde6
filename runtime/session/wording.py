"""What is said as the tokens of one model: turns, documents, and what a window begins with. Knows a model and its template, no cursor."""

from typing import TYPE_CHECKING

from ...models.errors import PromptError
from ...models.text.dialogue import Dialogue
from ...models.text.rendered import encode_document, encode_head, encode_turn

if TYPE_CHECKING:
    from ..loading import Model

Ids = tuple[int, ...]


class Wording:
    """Tokens under one system prompt, for windows of `size`."""

    def __init__(self, model: "Model", system: str | None, size: int):
        self.model, self.size = model, size
        self.dialogue = Dialogue(model.template, system, model.end_of_turn)
        self._head: Ids | None = None

    def turn(self, content: str, first: bool) -> Ids:
        """A user's turn and the opening of the answer. Whatever the message spells, it cannot end the turn or begin another's."""
        return tuple(self.model.check_ids(encode_turn(self.model.text, self.dialogue, content, first)))

    def closing(self) -> Ids:
        """What follows an answer."""
        return tuple(self.model.encode(self.dialogue.close()))

    def document(self, first: bool) -> tuple[Ids, Ids]:
        """What stands before and after a document that is read as a message."""
        before, after = encode_document(self.model.text, self.dialogue, first)
        return tuple(self.model.check_ids(before)), tuple(self.model.check_ids(after))

    def head(self) -> Ids:
        """What every window begins with: the system prompt, given or the template's own. Raises PromptError if it leaves less than half of one."""
        if self._head is None:
            ids = tuple(self.model.check_ids(encode_head(self.model.text, self.dialogue)))
            most = self.model.config.max_position_embeddings
            if len(ids) > self.size // 2:
                larger = self.model.config.memory.cell != "released" and 2 * len(ids) <= most
                remedy = f"take a window of at least {2 * len(ids)}, or shorten it" if larger else "shorten it"
                raise PromptError(f"the system prompt has {len(ids)} tokens, more than half of the window of {self.size}: {remedy}")
            self._head = ids
        return self._head

    def beginning(self, ids: Ids) -> Ids:
        """What every window of a plain text begins with: the tokenizer's own mark (a BOS), where the window's tokens `ids` begin with it."""
        begin = tuple(self.model.encode("", add_special=True))
        return begin if begin and ids[: len(begin)] == begin else ()
