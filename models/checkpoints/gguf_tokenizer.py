"""A tokenizer.json from a GGUF file's metadata, built with the `tokenizers` library.

Knows llama.cpp's two vocabulary kinds that Llamas use: `gpt2` (byte-level BPE with a named pre-tokenizer) and `llama`
(SentencePiece BPE,
merges derived from the scores). A pre-tokenizer it does not know is refused by name: a near miss would silently
change every prompt.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from ..text.library import refusals
from .gguf_header import GGUFHeader, get
from .gguf_special import NORMAL, UNKNOWN, UNUSED, USER_DEFINED, special_tokens

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2_PATTERN = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# A word begins anew where small letters end; its contraction stays with it.
CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}{a}{LOWER}{b}{CONTRACTIONS}?" for a, b in ("*+", "+*")]
GPT4O_PATTERN = "|".join([*CASED, r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"])
PATTERNS = {"llama3": LLAMA3_PATTERN, "gpt-4": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN, "gpt-4o": GPT4O_PATTERN}
Merges = list[tuple[str, str]]
PRE = {
    "smollm": "smollm",
    "refact": "smollm",
    "gpt-2": "gpt-2",
    "default": "gpt-2",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "llama-bpe": "llama3",
    "qwen2": "qwen2",
    "dbrx": "gpt-4",  # OLMo 2 and 3, Phi-4
    "glm4": "gpt-4",
    "chatglm-bpe": "gpt-4",
    "gpt-4o": "gpt-4o",  # Phi-4-mini
}


def tokenizer_json(header: GGUFHeader, path: Path) -> bytes | None:
    """The bytes of a tokenizer.json, or None when the file has no vocabulary. Raises ConvertError naming the key and
    the remedy."""
    if "tokenizer.ggml.model" not in header.metadata and "tokenizer.ggml.tokens" not in header.metadata:
        return None
    vocab, kinds = _vocabulary(header, path)
    model = get(header, path, "tokenizer.ggml.model", lambda x: isinstance(x, str), "a name")
    with refusals(lambda said: ConvertError(f"{path}: its tokenizer cannot be rebuilt ({said}): convert the model to GGUF again")):
        if model not in ("gpt2", "llama"):
            raise ConvertError(f"{path}: tokenizer.ggml.model {model!r} is not supported: it must be gpt2 or llama")
        merges = list(_merges(header, path, vocab) if model == "gpt2" else _merges_from_scores(header, path, vocab, kinds))
        special = special_tokens(header, vocab, kinds, {left + right for left, right in merges})
        # A special token is put together of nothing, or plain text could spell it.
        hidden = {token for token, yes in special.items() if yes}
        merges = [(left, right) for left, right in merges if not hidden & {left, right, left + right}]
        build = _byte_level if model == "gpt2" else _sentencepiece
        tokenizer = build(header, path, vocab, kinds, merges)
        _add_special(tokenizer, special)
        _add_bos(tokenizer, header, path, list(vocab), model)
        return tokenizer.to_str(pretty=False).encode("utf-8")


def _vocabulary(header: GGUFHeader, path: Path) -> tuple[dict[str, int], list[int]]:
    def texts(x: Any) -> bool:
        return isinstance(x, list) and len(x) > 0 and all(isinstance(t, str) for t in x)

    tokens = get(header, path, "tokenizer.ggml.tokens", texts, "a list of texts")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise ConvertError(f"{path}: tokenizer.ggml.tokens has {twice!r} twice: convert the model to GGUF again")
    rows = header.tensors["token_embd.weight"].shape[0]
    if len(tokens) > rows:
        raise ConvertError(
            f"{path}: tokenizer.ggml.tokens has {len(tokens)} tokens, token_embd.weight has {rows} rows: they are not of one model"
        )

    def kinds_fit(x: Any) -> bool:
        return isinstance(x, list) and len(x) == len(tokens) and all(type(k) is int for k in x)

    kinds = get(header, path, "tokenizer.ggml.token_type", kinds_fit, f"a list of {len(tokens)} numbers", [NORMAL] * len(tokens))
    return vocab, kinds


def _byte_level(header: GGUFHeader, path: Path, vocab: dict[str, int], kinds: list[int], merges: Merges) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = header.metadata.get("tokenizer.ggml.pre")
    if pre not in PRE:
        said = "is missing" if pre is None else f"{pre!r} is not known"
        raise ConvertError(
            f"{path}: tokenizer.ggml.pre {said}: it must be one of {', '.join(PRE)}; convert the Hugging Face checkpoint instead"
        )
    form = PRE[pre]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=form == "llama3"))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if form == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    elif form == "gpt-2":
        tokenizer.pre_tokenizer = split
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERNS[form]), "isolated"), plain])
    if form == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(header: GGUFHeader, path: Path, vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    lines = get(header, path, "tokenizer.ggml.merges", lambda x: isinstance(x, list), "a list of pairs")
    for i, line in enumerate(lines):
        parts = line.split(" ") if isinstance(line, str) else []
        if len(parts) != 2 or not all(p in vocab for p in parts) or parts[0] + parts[1] not in vocab:
            raise ConvertError(
                f"{path}: tokenizer.ggml.merges[{i}] {line!r} must be two known tokens that join to a third: convert it again"
            )
        yield parts[0], parts[1]


def _sentencepiece(header: GGUFHeader, path: Path, vocab: dict[str, int], kinds: list[int], merges: Merges) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id", kinds.index(UNKNOWN) if UNKNOWN in kinds else 0)
    if type(unknown) is not int or not 0 <= unknown < len(vocab):
        raise ConvertError(f"{path}: tokenizer.ggml.unknown_token_id {unknown!r} must be a token id below {len(vocab)}")
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=list(vocab)[unknown], fuse_unk=True, byte_fallback=True))
    prefix = get(header, path, "tokenizer.ggml.add_space_prefix", lambda x: isinstance(x, bool), "true or false", True)
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces] if prefix else [spaces])
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return tokenizer


def _merges_from_scores(header: GGUFHeader, path: Path, vocab: dict[str, int], kinds: list[int]) -> Iterator[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores highest: every way to split a piece is a merge, ranked by
    the piece's score."""

    def scores_fit(x: Any) -> bool:
        return isinstance(x, list) and len(x) == len(vocab) and all(isinstance(s, float) for s in x)

    scores = get(header, path, "tokenizer.ggml.scores", scores_fit, f"a list of {len(vocab)} numbers")
    pieces = {t for t, i in vocab.items() if kinds[i] in (NORMAL, USER_DEFINED, UNUSED)}
    for piece in sorted(pieces, key=lambda t: (-scores[vocab[t]], vocab[t])):
        for at in range(1, len(piece)):
            if piece[:at] in pieces and piece[at:] in pieces:
                yield piece[:at], piece[at:]


def _add_special(tokenizer: Any, special: dict[str, bool]) -> None:
    from tokenizers import AddedToken

    for token, hidden in special.items():
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=hidden)])


def _add_bos(tokenizer: Any, header: GGUFHeader, path: Path, tokens: list[str], model: str) -> None:
    """Start (and end) token through the post-processor, as the metadata asks; the defaults where it is silent are
    llama.cpp's."""
    from tokenizers import processors

    def flag(name: str, default: bool) -> bool:
        return get(header, path, f"tokenizer.ggml.add_{name}_token", lambda x: isinstance(x, bool), "true or false", default)

    llama3 = PRE.get(header.metadata.get("tokenizer.ggml.pre", ""), "") == "llama3"
    use: dict[str, int] = {}
    for name, default in (("bos", model == "llama" or llama3), ("eos", False)):
        token = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if flag(name, default) and token is not None and token < len(tokens):
            use[name] = token
    if not use:
        return
    before, after = ([tokens[use[n]]] if n in use else [] for n in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(tokens[i], i) for i in dict.fromkeys(use.values())],
    )
