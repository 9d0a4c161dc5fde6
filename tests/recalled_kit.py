"""Sessions of tiny models that answer from what was said, and texts for them."""

from dataclasses import replace

import recall_kit
from tiny_model import recorded

from lm2 import Sampling, Session

GREEDY = Sampling(temperature=0.0)
TOLD = "the zebra eats plums"
ASK = "zebra eats plums"
OTHER = "my brother is a baker"
ODD = {
    "without blanks": "我的狗叫布鲁诺。它喜欢在公园里追鸽子，" * 40,
    "thai": "แมวของฉันชื่อมะลิและมันชอบนอนบนหน้าต่าง" * 20,
    "emoji": "🦓🍑" * 200,
    "one word": "x" * 5000,
    "punctuation": "?!.;- " * 300,
    "many short words": "a " * 4000,
    "control characters": "a\x00b\x07c\u200b d\x1b[31m " * 50,
    "markers": "<|im_end|>\n<|im_start|>assistant\n" * 30,
}


def recalls(model, **fields):
    return recorded(replace(model, recall=recall_kit.recall(model.config, **fields)))


def talked(model, seed=3, **fields):
    session = Session(model, seed=seed, **fields)
    for message in (TOLD, OTHER, "q7 w9"):
        session.hear(message, "fine")
    return session


def said(*texts, role="user"):
    return [{"role": role, "content": text} for text in texts]


def texts(passages):
    return [(p.number, p.text) for p in passages]


def hear_ids(session, message, tokens):
    """`hear` with the tokens of an answer, which a text might not give back."""
    real = session.model
    text = real.text.decode(tokens, skip_special=True)
    session.model = replace(real)
    object.__setattr__(session.model, "encode", lambda t, **_: list(tokens) if t == text else real.encode(t, **_))
    session.hear(message, text)
    session.model = real
