"""A small tokenizer for a small model: byte-level BPE over the training texts, with three marks of its own chat template.

Knows the `tokenizers` library. The result is a function of the texts and the size.
"""

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..tasks import babi
from ..tasks.recall import conversations
from . import sources
from .speech import ASSISTANT, END, USER

SIZE = 1536
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('lm2-tiny has no system prompt') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(data: Path | None, size: int = SIZE) -> Tokenizer:
    """Train on bAbI and books in `data`, if there are, and on the recall task's stories. A text's first word is tokenized as any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(data), trainer)
    return tokenizer


def _texts(data: Path | None) -> Iterator[str]:
    if data is not None and (data / "babi").is_dir():
        for task, file in babi.find(data / "babi").items():
            if int(task[2:]) <= 5:
                yield from _plain(sources.lines(file)[:20000])
    made = conversations("story", 0, "train", 2, lambda text: len(text.split()) + 1, 64)
    for _ in range(3000):
        for chunk in next(made).chunks:
            yield from (turn.content for turn in chunk)
    if data is not None:
        for file in sources.books(data)[:16]:
            yield from sources.lines(file)


def _plain(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield " ".join(re.sub(r"[\t\d]+", " ", line).split())


def words(vocabulary: Iterable[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Capitalised words and small ones of a byte-level vocabulary, each list followed by a third as many that are made up: the beginning of one and a
    short token. Both empty for a vocabulary that marks blanks otherwise. A function of the vocabulary and the seed."""
    tokens = sorted(vocabulary)
    rng = random.Random(f"{seed} words")
    endings = [t for t in tokens if re.fullmatch(r"[a-z]{2,4}", t)] or [""]
    out = []
    for form in (r"Ġ[A-Z][a-z]{2,9}", r"Ġ[a-z]{3,10}"):
        whole = [t[1:] for t in tokens if re.fullmatch(form, t)]
        out.append(whole + [word[:5] + rng.choice(endings) for word in rng.sample(whole, len(whole) // 3)])
    return out[0], out[1]
