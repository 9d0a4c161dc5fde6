"""A byte-level tokenizer of 256 bytes and three chat tokens, made on the spot: nothing is downloaded."""

from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(SPECIAL)
ENDOFTEXT, IM_START, IM_END = range(256, VOCAB)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def library():
    """The `tokenizers` object: id = byte for 0 to 255, then SPECIAL. No merges: one token per byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    stand_ins = byte_characters()
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(stand_ins)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    return made


def byte_characters():
    """The character GPT-2's byte-level tokenizers write for each byte, asked of the library itself."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = {}
    for code in [
        *range(0x80),
        *range(0x80, 0x800),
        *(n << 6 for n in range(0x20, 0x400)),
        *range(0x10000, 0x110000, 0x1000),
    ]:
        if not 0xD800 <= code < 0xE000:
            raw = chr(code).encode()
            table.update(zip(raw, split.pre_tokenize_str(chr(code))[0][0], strict=True))
    unused = iter(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(table.values())))
    return [table[b] if b in table else next(unused) for b in range(256)]


def make(folder: Path) -> Path:
    """Write tokenizer.json and chat_template.jinja (ChatML) into `folder`, made if needed; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(library().to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder
