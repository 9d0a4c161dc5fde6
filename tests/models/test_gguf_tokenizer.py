"""Tokenizers rebuilt from GGUF metadata against the ones they came from."""

import itertools
import json

import pytest
import sources
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.gguf_tokenizer import GPT4O_PATTERN, LLAMA3_PATTERN, PRE, QWEN2_PATTERN
from lm2.models.errors import ConvertError

TEXTS = [
    "the quick brown fox",
    "  two  spaces\n\n\nlines \n",
    "isn't IT'S 12345 678",
    "naïve café 日本語 😀 é",
    "def f(x):\n    return x1 + 22",
    "",
    "<|im_start|>user\nhello<|im_end|>\n",
    "a<|endoftext|>b",
    "camelCase HTTPServer's ÉCOLE'S DON'T été ǅ ªb",
    "a//b/\n\n/c !?\r\n 1234567 ٣٤ ½",
]
SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False)
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
FORMS = {
    "smollm": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), SPLIT]), None, {}),
    "gpt-2": (lambda: SPLIT, None, {}),
    "default": (lambda: SPLIT, None, {}),
    "llama-bpe": (
        lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), PLAIN]),
        None,
        {"ignore_merges": True},
    ),
    **{
        pre: (lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "removed", invert=True), PLAIN]), None, {})
        for pre in ("dbrx", "glm4", "chatglm-bpe")  # as in OLMo 2's tokenizer.json
    },
    "gpt-4o": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4O_PATTERN), "isolated"), PLAIN]), None, {}),
    "qwen2": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), PLAIN]), normalizers.NFC, {}),
}


def rebuilt(tmp_path, keys, vocab):
    sources.write_gguf(tmp_path / "m.gguf", sources.llama(vocab=vocab, layers=1), keys=keys)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    return Tokenizer.from_file(str(tmp_path / "dst" / "tokenizer.json"))


def original(pre):
    make, normalizer, bpe = FORMS[pre]
    return sources.byte_level_tokenizer(make(), normalizer() if normalizer else None, **bpe)


@pytest.mark.parametrize("pre", FORMS)
def test_byte_level_round_trip(tmp_path, pre):
    want = original(pre)
    if pre == "llama-bpe":
        want.post_processor = processors.TemplateProcessing(single=("<|im_start|> $A"), special_tokens=[("<|im_start|>", 1)])
    got = rebuilt(tmp_path, lambda w: sources.add_byte_level(w, want, pre), want.get_vocab_size())
    for text in TEXTS:
        for special in (True, False):
            ids = want.encode(text, add_special_tokens=special).ids
            assert got.encode(text, add_special_tokens=special).ids == ids, text
        assert got.decode(ids, skip_special_tokens=False) == text
        assert got.decode(ids) == want.decode(ids)
    template = (tmp_path / "dst" / "chat_template.jinja").read_text()
    assert template == sources.TEMPLATE
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["bos_token_id"] == 1 and config["eos_token_id"] == [2]


def test_the_pre_tokenizer_matters(tmp_path):
    want = original("gpt-2")
    got = rebuilt(tmp_path, lambda w: sources.add_byte_level(w, want, "smollm"), want.get_vocab_size())
    assert any(got.encode(t).ids != want.encode(t).ids for t in TEXTS)


@pytest.mark.parametrize("pre", sorted(set(PRE) - {"smollm", "refact", "gpt-2", "default", "glm4", "chatglm-bpe"}))
def test_the_patterns_are_those_of_transformers(tmp_path, pre):
    """Which has glm4's not: that one is GLM's own, in the tokenizer that came with its first checkpoints, and llama.cpp's, and the same as dbrx's."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    want = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated")
    got = rebuilt(tmp_path, lambda w: sources.add_byte_level(w, original(pre if pre in FORMS else "llama-bpe"), pre), 400)
    state = json.loads(got.to_str())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    for text in [*TEXTS, "Ve\u0301LO\u0301lo e\u0301'Re", "it'Stuck we'Really"]:
        assert pre_tokenizers.Split(Regex(state), "isolated").pre_tokenize_str(text) == want.pre_tokenize_str(text), text
    other = pre_tokenizers.Split(Regex(QWEN2_PATTERN if pre != "qwen2" else LLAMA3_PATTERN), "isolated")
    assert any(other.pre_tokenize_str(text) != want.pre_tokenize_str(text) for text in TEXTS)


def test_transformers_reads_the_result_the_same(tmp_path):
    from transformers import PreTrainedTokenizerFast

    want = original("smollm")
    got = rebuilt(tmp_path, lambda w: sources.add_byte_level(w, want, "smollm"), want.get_vocab_size())
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "dst" / "tokenizer.json"), chat_template=sources.TEMPLATE)
    for text in TEXTS:
        assert theirs(text).input_ids == got.encode(text).ids == want.encode(text).ids
    turn = [{"role": "user", "content": "quick fox 12"}]
    ids = theirs.apply_chat_template(turn, tokenize=True, return_dict=False)
    assert ids == want.encode("<|im_start|>user\nquick fox 12<|im_end|>\n").ids and ids[0] == 1


def spm_vocab():
    """A small SentencePiece-like vocabulary: specials, bytes, then pieces whose score falls with their id."""
    longer = ["▁t", "he", "▁the", "in", "er", "▁q", "ui", "ck", "▁qui", "▁quick", "▁a", "re", "▁b", "ro", "wn", "▁bro", "▁brown"]
    longer += ["▁f", "ox", "▁fox", "▁▁"]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz.,0123", *longer]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return tokens, kinds, scores


def add_spm(writer, space_prefix=None, add_bos=None):
    tokens, kinds, scores = spm_vocab()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)


def spm_reference(text):
    """SentencePiece's BPE written plainly: join the neighbours whose union scores highest, leftmost first; then bytes for what is unknown."""
    tokens, kinds, scores = spm_vocab()
    ids = {t: i for i, t in enumerate(tokens)}
    known = {t for t, k in zip(tokens, kinds, strict=True) if k == 1}
    parts = list(text.replace(" ", "▁"))
    while True:
        best = max(((scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known), default=None)
        if best is None:
            break
        i = -best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    out = []
    for part in parts:
        out += [ids[part]] if part in known else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return out


SPM_TEXTS = ["the quick brown fox", "quick  the", "tHé 日本", "fox.in,a 0123", " thethe ", "a"]


@pytest.mark.parametrize("prefix", [None, False])
def test_sentencepiece_round_trip(tmp_path, prefix):
    got = rebuilt(tmp_path, lambda w: add_spm(w, prefix), len(spm_vocab()[0]))
    for text in SPM_TEXTS:
        want = spm_reference(text if prefix is False else " " + text)
        assert got.encode(text, add_special_tokens=False).ids == want, text
        assert got.encode(text).ids == [1, *want], text  # add_bos is the default of this kind
        assert got.decode(want) == text


def test_sentencepiece_against_transformers(tmp_path):
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    tokens, _, scores = spm_vocab()
    vocab = {t: i for i, t in enumerate(tokens)}
    theirs = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, dict(zip(tokens, scores, strict=True))))
    got = rebuilt(tmp_path, add_spm, len(tokens))
    for text in SPM_TEXTS:
        if text.startswith(" "):
            continue  # transformers adds no prefix before a space; SentencePiece and llama.cpp do
        assert got.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids, text


def test_against_sentencepiece_itself(tmp_path):
    import io

    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "then there was another brown dog", "x = f(1, 22)"] * 20),
        model_writer=trained, vocab_size=340, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    want = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    n = want.get_piece_size()
    kinds = [2 if want.is_unknown(i) else 3 if want.is_control(i) else 6 if want.is_byte(i) else 1 for i in range(n)]

    def keys(w):
        w.add_tokenizer_model("llama")
        w.add_token_list([want.id_to_piece(i) for i in range(n)])
        w.add_token_scores([want.get_score(i) for i in range(n)])
        w.add_token_types(kinds)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)

    got = rebuilt(tmp_path, keys, n)
    for text in [*SPM_TEXTS, "the other foxes jump", "  then\n\tthere  ", "f(22) = the dog's 日本 😀"]:
        ids = want.encode(text)
        assert got.encode(text, add_special_tokens=False).ids == ids, text
        assert got.decode(ids) == text


def add_gemma(writer, prefix=False):
    """As Gemma's files have it: runs of lines and blanks are tokens of their own, nothing is put before a text, scores fall with the id."""
    tokens, kinds, scores = spm_vocab()
    tokens, kinds, scores = tokens[:-1], kinds[:-1], scores[:-1]  # "▁▁" is among the runs, as blanks
    tokens += [*RUNS, "<end_of_turn>"]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([*scores, *[-1000.0] * (len(RUNS) + 1)])
    writer.add_token_types([*kinds, *[4] * len(RUNS), 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)
    return tokens


RUNS = ["\n", "\n\n", "\n\n\n", "  ", "   ", "<b>"]
GEMMA_TEXTS = [*SPM_TEXTS, "the\n\n\n\n\nquick", "  the   fox", "      a", "the<b>fox <b> a", "\n", "over her", "tHé\n  fox<end_of_turn>"]


def gemma_reference(text):
    """What is matched whole first, the longest first; the rest by scores."""
    tokens = add_gemma(Nothing())
    whole = sorted([*RUNS, "<end_of_turn>"], key=len, reverse=True)
    out = []
    while text:
        found = next((t for t in whole if text.startswith(t)), None)
        end = len(found) if found else min([i for t in whole if (i := text.find(t)) >= 0] or [len(text)])
        out += [tokens.index(found)] if found else spm_reference(text[:end])
        text = text[end:]
    return out


class Nothing:
    """A writer that writes nothing."""

    def __getattr__(self, name):
        return lambda *_: None


def test_a_vocabulary_like_gemmas(tmp_path):
    n = len(add_gemma(Nothing()))
    got = rebuilt(tmp_path, add_gemma, n)
    for text in GEMMA_TEXTS:
        want = gemma_reference(text)
        assert got.encode(text, add_special_tokens=False).ids == want, text
        assert got.encode(text).ids == [1, *want], text
        assert got.decode(want, skip_special_tokens=False) == text
    assert got.decode(got.encode("the<b><end_of_turn>").ids) == "the<b>" and eos(tmp_path) == [2, n - 1]


@pytest.mark.parametrize("prefix", [True, None])
def test_the_space_prefix_matters(tmp_path, prefix):
    """True, and taken for true where the key is missing: the same texts are other tokens."""
    got = rebuilt(tmp_path, lambda w: add_gemma(w, prefix), len(add_gemma(Nothing())))
    assert got.encode("the fox", add_special_tokens=False).ids == gemma_reference(" the fox") != gemma_reference("the fox")


def test_the_scores_matter(tmp_path):
    def turned(writer):
        add_gemma(writer)
        data = writer.kv_data[-1]["tokenizer.ggml.scores"]
        data.value = [-score for score in data.value]

    got = rebuilt(tmp_path, turned, len(add_gemma(Nothing())))
    assert any(got.encode(t, add_special_tokens=False).ids != gemma_reference(t) for t in GEMMA_TEXTS)


def test_bos_is_added_only_when_asked(tmp_path):
    got = rebuilt(tmp_path, lambda w: add_spm(w, add_bos=False), len(spm_vocab()[0]))
    assert got.encode("the").ids == spm_reference(" the")


def test_specials_are_special(tmp_path):
    want = original("smollm")
    got = rebuilt(tmp_path, lambda w: sources.add_byte_level(w, want, "smollm"), want.get_vocab_size())
    ids = got.encode("a<|im_end|>b").ids
    assert 2 in ids and got.decode(ids) == "ab" and isinstance(got.decoder, decoders.ByteLevel)


def test_end_tokens_of_older_files(tmp_path):
    want = original("smollm")

    def keys(w):
        sources.add_byte_level(w, want, "smollm")
        w.add_uint32("tokenizer.ggml.eot_token_id", 5)
        w.add_uint32("tokenizer.ggml.eom_token_id", 6)

    rebuilt(tmp_path, keys, want.get_vocab_size())
    assert json.loads((tmp_path / "dst" / "config.json").read_text())["eos_token_id"] == [2, 5, 6]


def retyped(types=(), names=(), ids=(), template=None, merges=(), spm=False):
    """Metadata with tokens of other types, names and roles: types and names by id, ids by key."""

    def keys(w):
        add_spm(w) if spm else sources.add_byte_level(w, original("smollm"), "smollm")
        data = w.kv_data[-1]
        for field, values, usual in (("tokens", dict(names), None), ("token_type", dict(types), 1)):
            have = data[f"tokenizer.ggml.{field}"].value
            have += [usual] * (max([*dict(names), -1]) + 1 - len(have))
            for i, value in values.items():
                have[i] = value
        for key, i in dict(ids).items():
            w.kv_data[-1].pop(f"tokenizer.ggml.{key}_token_id", None)
            w.add_uint32(f"tokenizer.ggml.{key}_token_id", i)
        for pair in merges:
            data["tokenizer.ggml.merges"].value.append(pair)
        if template is not None:
            data.pop("tokenizer.chat_template", None)
            w.add_chat_template(template)

    return keys


def eos(tmp_path):
    return json.loads((tmp_path / "dst" / "config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "<|im_end|>") for kind in range(1, 6)),
        *((1, name) for name in ("<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>")),
    ],
)
def test_an_end_of_turn_is_one_token_whatever_its_type(tmp_path, kind, name):
    """And ends a reply, though eos is another token, and is left out of what people read."""
    got = rebuilt(tmp_path, retyped({2: kind}, {2: name}, {"eos": 0}, template="{{ messages[0]['content'] + '" + name + "' }}"), 338)
    ids = got.encode(f"a{name}b").ids
    assert ids.count(2) == 1 and len(ids) == 3 and got.decode(ids) == "ab"
    assert eos(tmp_path) == [0, 2]
    plain = Tokenizer.from_file(str(tmp_path / "dst" / "tokenizer.json"))
    plain.encode_special_tokens = True
    assert 2 not in plain.encode(f"a{name}b").ids


@pytest.mark.parametrize("key", ["eos", "eot", "eom", "bos"])
def test_a_token_that_the_metadata_names_is_one_token(tmp_path, key):
    got = rebuilt(tmp_path, retyped({1: 1}, {1: "[STOP"}, {"eos": 2, key: 1}), 338)
    assert got.encode("a[STOP").ids[-1] == 1 and (1 in eos(tmp_path)) == (key != "bos")


@pytest.mark.parametrize("name", ["<|user|>", "<|im_start|>", "<start_of_turn>", "[INST]", "<<SYS>>", "</s>", "<｜User｜>"])
def test_a_mark_that_the_template_spells_is_one_token(tmp_path, name):
    got = rebuilt(tmp_path, retyped({1: 1}, {1: name}, {"bos": 0}, template=name + "{{ messages[0]['content'] }}<|im_end|>"), 338)
    assert got.encode(f"a{name}b").ids[1:2] == [1] and eos(tmp_path) == [2]


def test_words_are_no_marks(tmp_path):
    """A template's words, and a line's end that eos names, stay vocabulary."""
    want = original("smollm")
    vocab = want.get_vocab(with_added_tokens=True)
    by_id = {i: t for t, i in vocab.items()}
    pairs = json.loads(want.to_str())["model"]["merges"]
    product = vocab["".join(pairs[0])]
    keys = retyped({}, {}, {"eos": vocab["Ċ"]}, template="the <b> " + by_id[product] + "{{ messages[0]['content'] }}\n")
    got = rebuilt(tmp_path, keys, 338)
    assert {t.content for t in got.get_added_tokens_decoder().values()} == set(sources.SPECIAL)
    for text in ("the quick brown fox", "x <b> y\n\n", by_id[product].replace("Ġ", " ")):
        assert got.encode(text).ids == want.encode(text).ids
    assert eos(tmp_path)[0] == vocab["Ċ"]


def test_a_bracketed_word_that_merges_make_stays_a_word(tmp_path):
    """So does a bracketed text that the template does not write: nothing says that it is a mark."""
    names = {338: "b>", 339: "<b>", 340: "<i>"}
    got = rebuilt(tmp_path, retyped({}, names, {}, template="<b>{{ messages[0]['content'] }}", merges=["b >", "< b>"]), 341)
    assert not {339, 340} & set(got.get_added_tokens_decoder())
    for text in ("<b>", "<i>"):
        assert got.encode(text).ids == original("smollm").encode(text).ids


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("{% for m in messages %}{{ m['role'] + m['content'] + '<|mine|>' }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content | trim }}{% if not loop.last %}<|mine|>{% endif %}{% endfor %}", True),
        ("{% for m in messages %}{{- m['content'].strip() ~ '\\n<|mine|>' }}{% endfor %}", True),
        ("{% for m in messages %}<|mine|>{{ m['content'] }}{% endfor %}", False),
        ("{% for m in messages %}{{ '<|mine|>' + m['content'] + '\\n' }}{% endfor %}", False),
    ],
)
def test_what_the_template_writes_after_a_message_ends_a_reply(tmp_path, template, ends):
    rebuilt(tmp_path, retyped({2: 1}, {2: "<|mine|>"}, {"eos": 0}, template=template), 338)
    assert eos(tmp_path) == ([0, 2] if ends else [0])


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_an_end_of_turn_in_a_sentencepiece_vocabulary(tmp_path, kind):
    tokens = spm_vocab()[0]
    last = len(tokens) - 1
    keys = retyped({last: kind}, {last: "<end_of_turn>"}, {}, template="{{ messages[0]['content'] }}<end_of_turn>", spm=True)
    got = rebuilt(tmp_path, keys, len(tokens))
    assert got.encode("the<end_of_turn>").ids[-1] == last and eos(tmp_path) == [2, last]
    assert got.encode("the quick").ids[1:] == spm_reference(" the quick")


def spoil(change):
    def keys(w):
        sources.add_byte_level(w, original("smollm"), "smollm")
        change(w.kv_data[-1])

    return keys


def put(key, value):
    def change(data):
        data[key].value = value

    return change


REFUSED = {
    "pre": (lambda w: sources.add_byte_level(w, original("smollm"), "tekken"), "tokenizer.ggml.pre 'tekken' is not known"),
    "no pre": (lambda w: sources.add_byte_level(w, original("smollm"), None), "tokenizer.ggml.pre is missing"),
    "model": (spoil(put("tokenizer.ggml.model", "bert")), "tokenizer.ggml.model 'bert' is not supported"),
    "merge": (spoil(lambda d: d["tokenizer.ggml.merges"].value.__setitem__(0, "no such")), r"merges\[0\] 'no such'"),
    "three": (spoil(lambda d: d["tokenizer.ggml.merges"].value.__setitem__(1, "a b c")), r"merges\[1\]"),
    "no merges": (spoil(lambda d: d.pop("tokenizer.ggml.merges")), "tokenizer.ggml.merges is missing"),
    "twice": (spoil(lambda d: d["tokenizer.ggml.tokens"].value.__setitem__(9, "<|im_end|>")), "has '<|im_end|>' twice".replace("|", r"\|")),
    "types": (spoil(lambda d: d["tokenizer.ggml.token_type"].value.pop()), "token_type .* must be a list of 338"),
    "bos": (spoil(put("tokenizer.ggml.bos_token_id", 338)), "bos_token_id 338 must be a token id below 338"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_is_refused(tmp_path, case):
    keys, message = REFUSED[case]
    with pytest.raises(ConvertError, match=message):
        rebuilt(tmp_path, keys, 338)


def test_more_tokens_than_rows(tmp_path):
    want = original("smollm")
    assert want.get_vocab_size() == 338
    with pytest.raises(ConvertError, match=r"has 338 tokens, token_embd.weight has 337 rows"):
        rebuilt(tmp_path, lambda w: sources.add_byte_level(w, want, "smollm"), 337)
