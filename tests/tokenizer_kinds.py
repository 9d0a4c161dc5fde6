"""One tokenizer of each family Llama models use, made on the spot, with the tokens of tiny_tokenizer and a few merges."""

import tiny_tokenizer

KINDS = ("gpt2", "llama3", "sentencepiece", "metaspace")
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = ("the", "gate", "opens", "ab", "cd", "late", "return")


def build(kind):
    """The `tokenizers` object."""
    return _byte_level(kind) if kind in ("gpt2", "llama3") else _sentencepiece(kind)


def VALID(library):
    """Ids whose text is whole characters whatever stands beside them: ASCII, words, special tokens."""
    names = {i: t for t, i in library.get_vocab(with_added_tokens=True).items()}
    return [i for i, t in sorted(names.items()) if not t.startswith("<0x") and all(c.isascii() or c in "Ġ▁é北" for c in t)]


def _merges(vocab, space):
    """Merges that build each word, and each word after a blank, from the left; their results join the vocabulary."""
    merges = []
    for word in [*WORDS, *(space + w for w in WORDS), space * 2]:
        for at in range(1, len(word)):
            pair = (word[:at], word[at])
            if pair[0] + pair[1] not in vocab:
                vocab[pair[0] + pair[1]] = len(vocab)
            if pair not in merges:
                merges.append(pair)
    return merges


def _byte_level(kind):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    vocab = {c: i for i, c in enumerate(tiny_tokenizer.byte_characters())}
    made = Tokenizer(models.BPE(vocab=vocab, merges=_merges(vocab, "Ġ")))
    if kind == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tiny_tokenizer.SPECIAL])
    if kind == "llama3":
        bos = made.token_to_id("<|endoftext|>")
        made.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)])
    return made


def _sentencepiece(kind):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{b:02X}>": 2 + b for b in range(256)}
    for c in [*map(chr, range(0x21, 0x7F)), "▁", "é", "北"]:
        vocab[c] = len(vocab)
    made = Tokenizer(models.BPE(vocab=vocab, merges=_merges(vocab, "▁"), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "sentencepiece":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<s>", *tiny_tokenizer.SPECIAL)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made
