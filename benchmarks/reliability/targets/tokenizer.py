"""tokenizer.json. Right means: the ids the tokenizers library gives, the text of ids that the library gives, and the same text streamed."""

import json
from pathlib import Path
from random import Random

import kit
import tiny_tokenizer
import tokenizer_kinds
from mutate import mutate_bytes, mutate_json

from lm2.models.errors import LM2Error
from lm2.models.text.streaming import Detokenizer
from lm2.models.text.tokenizer import Tokenizer

from . import Target

SAID = ["the gate opens late", " <|im_start|>user\nab cd<|im_end|>", "", "a", "é 北 \U0001f600 \x00\t", "The  RETURN of 12345, isn't it?"]


def target(place: Path) -> Target:
    import tokenizers

    seeds = [json.dumps(json.loads(tokenizer_kinds.build(kind).to_str())).encode() for kind in tokenizer_kinds.KINDS]
    seeds.append(json.dumps(json.loads(tiny_tokenizer.library().to_str())).encode())
    file = place / "tokenizer.json"

    def check(data: bytes) -> str:
        file.write_bytes(data)
        try:
            own = Tokenizer.load(place)
            ids = [(own.encode(text), own.encode(text, add_special=True), own.encode(text, plain=True)) for text in SAID]
            back = [own.decode(bare) for bare, _, _ in ids]
        except LM2Error as error:
            return kit.check_refusal(error) + f": {error}"
        library = tokenizers.Tokenizer.from_buffer(data.removeprefix(b"\xef\xbb\xbf"))
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None
        for text, (bare, full, _), again in zip(SAID, ids, back, strict=True):
            kit.equal(f"ids of {text!r}", bare, library.encode(text, add_special_tokens=False).ids)
            around, begin = library.encode(text, add_special_tokens=True).ids, full[: len(full) - len(bare)]
            kit.need(full[len(begin) :] == bare and (around[: len(full)] == full or around[len(begin) :][: len(bare)] == bare), f"{text!r} begins as {full}, not {around}")
            words = Detokenizer(own, False)
            kit.equal("streamed text", "".join(words.add(i) for i in bare) + words.flush(), again)
            kit.need(all(0 <= i < own.vocab_size for i in full), f"an id outside of {own.vocab_size}")
            names = [library.id_to_token(i) for i in bare]
            if text.isascii() and all(n is not None and (n.isascii() or set(n) <= set("Ġ▁Ċ")) for n in names):
                want = library.decode(bare, skip_special_tokens=False)
                kit.need(again == want or "\ufffd" in want, f"the text of {names} is {again!r}, the library says {want!r}")
        return ""

    return Target("tokenizer", seeds, mutate, check)


def mutate(rng: Random, data: bytes) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return mutate_bytes(rng, data)
    if kind < 0.6:  # everything but the long lists of words
        try:
            tree = json.loads(data)
            kept = {k: tree["model"].pop(k) for k in ("vocab", "merges") if k in tree["model"]}
            mutated = json.loads(mutate_json(rng, json.dumps(tree).encode()))
            if isinstance(mutated.get("model"), dict):
                mutated["model"] |= kept
            return json.dumps(mutated).encode()
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            pass
    return mutate_json(rng, data)
