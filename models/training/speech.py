"""How a small model's training says things: sentences as ids, the marks around them, questions with their answers. Knows no stories and no chunks."""

from collections.abc import Callable

from ..tasks.world import Question

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"


class Speech:
    """encode: token ids of a text, called once per sentence. user, end, assistant: the marks' ids; ok: what answers a message that asks nothing."""

    def __init__(self, encode: Callable[[str], list[int]]):
        self._encode = encode
        self._cache: dict[str, list[int]] = {}
        self.user, self.end, self.assistant = (encode(mark)[0] for mark in (USER, END, ASSISTANT))
        self.ok = [self.end, self.assistant, *encode(" Ok."), self.end]

    def tokens(self, text: str) -> list[int]:
        """Ids of one sentence, its leading space included."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._cache[text] = self._encode(" " + text)
        return ids

    def exchange(self, question: Question) -> tuple[list[int], int]:
        """A question and its answer as ids, and where the answer begins."""
        head = [self.user, *self.tokens(question.text), self.end, self.assistant]
        return [*head, *self.tokens(question.answer + "."), self.end], len(head)
