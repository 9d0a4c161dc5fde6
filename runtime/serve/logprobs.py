"""Log probabilities of an answer's tokens, in step with the text that is shown. Knows logits and a tokenizer. Axis: v vocabulary."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..session.sampling import check_logits

if TYPE_CHECKING:
    from ..loading import Model

TOP_MAX = 20


class Logprobs:
    """Hears of each token that is chosen. top: how many of the likeliest are told beside it.

    The probabilities are the model's own: before temperature, penalty and filters.
    """

    def __init__(self, model: "Model", top: int):
        self.model, self.top = model, top
        self._waiting: list[tuple[int, dict[str, Any]]] = []  # where the token's text begins, in bytes, and what is told of it
        self._end = self._shown = 0

    def heard(self, logits: np.ndarray, token: int) -> None:
        """A token was chosen after logits (v,)."""
        z = check_logits(logits).astype(np.float64)  # (v,)
        z = z - (z.max() + np.log(np.exp(z - z.max()).sum()))
        best = np.argsort(-z, kind="stable")[: self.top].tolist()
        told = self._of(token, float(z[token])) | {"top_logprobs": [self._of(i, float(z[i])) for i in best]}
        self._waiting.append((self._end, told))
        self._end += len(self.model.text.piece(token, skip_special=True) or b"")

    def shown(self, text: str) -> list[dict[str, Any]]:
        """Tokens of which `text`, the next piece of the answer, shows the beginning."""
        self._shown += len(text.encode("utf-8", "replace"))
        out = [told for begin, told in self._waiting if begin < self._shown]
        del self._waiting[: len(out)]
        return out

    def rest(self) -> list[dict[str, Any]]:
        """Tokens that showed nothing, at an answer's end."""
        out, self._waiting = [told for _, told in self._waiting], []
        return out

    def _of(self, token: int, value: float) -> dict[str, Any]:
        raw = self.model.text.piece(token) or b""
        text = raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(value, -9999.0), "bytes": list(raw)}
