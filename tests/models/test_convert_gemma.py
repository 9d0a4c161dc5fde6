"""The real Gemma 3 270M from a GGUF file of it: its tokens. LM2_TEST_GEMMA3 names the file (a base model, any quantisation);
without it the test is skipped. Its terms are Google's, so that nothing of it is fetched or kept here."""

import itertools
import os
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.gguf_header import read_gguf

pytestmark = pytest.mark.real
FRANCE = "The capital of France is Paris, and the capital of Italy is"
TEXTS = [
    FRANCE, " lead", "  two", "a   b", " " * 40 + "x", "\n\n\n\t\t x", "日本語のテキスト 😀🧑‍💻 ", "naïve café é", "مرحبا بالعالم", "hahahahahahaha", "0000 1234567",
    "<table><b>x</b></table><start_of_turn>user\nhi<end_of_turn>\n", "\x00\x07 \ufffd", "ssss====-----__....", "def f(x):\n    return x[1:]  # a\n", "", Path(__file__).read_text()[:700],
]  # fmt: skip


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The GGUF file and the folder it was converted to."""
    file = os.environ.get("LM2_TEST_GEMMA3")
    if not file:
        pytest.skip("LM2_TEST_GEMMA3 names no GGUF file of Gemma 3 270M")
    folder = tmp_path_factory.mktemp("gemma") / "dst"
    convert(Path(file), folder)
    return Path(file), folder


def by_scores(text, ids, scores):
    """SentencePiece's rule written plainly: join the neighbours whose union scores highest, leftmost first; then bytes for what is unknown."""
    parts = list(text.replace(" ", "▁"))
    while True:
        best = max(((scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids), default=None)
        if best is None:
            break
        parts[-best[1] : 2 - best[1]] = ["".join(parts[-best[1] : 2 - best[1]])]
    return [i for p in parts for i in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]


def test_tokens_are_those_of_the_files_scores(gemma):
    data = read_gguf(gemma[0]).metadata
    tokens, kinds = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    ids = {t: i for i, t in enumerate(tokens)}
    whole = re.compile("(" + "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True) if kinds[ids[t]] in (2, 3, 4)) + ")")
    tokenizer = Tokenizer.from_file(str(gemma[1] / "tokenizer.json"))
    for text in TEXTS:
        parts = enumerate(whole.split(text))
        want = [i for at, part in parts for i in ([ids[part]] if at % 2 else by_scores(part, ids, data["tokenizer.ggml.scores"]))]
        assert tokenizer.encode(text, add_special_tokens=False).ids == want, text
        assert tokenizer.encode(text).ids == [2, *want]
        assert tokenizer.decode(want, skip_special_tokens=False) == text
