"""What the files beside a tokenizer.json say of its tokens, carried into the model folder: transformers is the oracle."""

import json
import shutil

import pytest
import sources
import tiny_tokenizer

from lm2.models.checkpoints.convert import convert
from lm2.models.errors import ConvertError, TokenizerError
from lm2.models.layout import TEXT_FILES
from lm2.runtime.loading import load
from lm2.runtime.template import ChatTemplate
from lm2.runtime.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token ~ '\n' }}{% endfor %}"
    "{{ pad_token }}{{ unk_token }}{{ image_token }}{% if add_generation_prompt %}assistant: {% endif %}"
)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
TEXTS = ("hi<|im_end|> there", "<extra> a <|im_start|>  b", "<|endoftext|>x", "")


def write(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        path = folder / name.replace("__", "/").replace("_jinja", ".jinja")
        path = path if path.suffix else path.with_suffix(".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB + 7), tmp_path_factory.mktemp("hf") / "bare")


@pytest.fixture
def source(bare, tmp_path):
    """A Llama folder with the tiny tokenizer, seven ids free behind it, and config.json's beginning 256, end 258."""
    folder = shutil.copytree(bare, tmp_path / "src")
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 256, "eos_token_id": 258}
    write(folder, config=config, tokenizer=json.loads(tiny_tokenizer.library().to_str()))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def spec(folder, edit):
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    write(folder, tokenizer=content)


def token(text, **flags):
    """As tokenizer_config.json writes a token."""
    return {"__type": "AddedToken", "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | flags


IN_VOCAB = {"__vocab__": {"<extra>": 259}}
CASES = {
    "texts": {"tokenizer_config": FAST | {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}},
    "object, known otherwise": {"tokenizer_config": FAST | {"bos_token": None, "eos_token": token("<|im_end|>", lstrip=True, rstrip=True)}},
    "map, known otherwise": {"special_tokens_map": {"eos_token": {"content": "<|im_end|>", "rstrip": True}}, "tokenizer_config": FAST},
    "additional, known otherwise": {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "additional_special_tokens": [token("<|im_start|>", rstrip=True)]}},
    "objects": {"tokenizer_config": FAST | {"bos_token": token("<|im_start|>"), "eos_token": token("<|endoftext|>") }},
    "null": {"tokenizer_config": FAST | {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": None}},
    "one is not named": {"tokenizer_config": FAST | {"eos_token": "<|im_end|>"}},
    "map": {"special_tokens_map": {"bos_token": "<|im_start|>", "eos_token": token("<|im_end|>")}, "tokenizer_config": FAST},
    "map before config": {"special_tokens_map": {"eos_token": "<|im_end|>"}, "tokenizer_config": FAST | {"eos_token": "<|endoftext|>"}},
    "config before map": {
        "special_tokens_map": {"eos_token": "<|im_end|>"},
        "tokenizer_config": FAST | {"eos_token": "<|endoftext|>", "added_tokens_decoder": {"258": token("<|im_end|>")}},
    },
    "decoder adds": {"tokenizer_config": FAST | {"eos_token": "<extra>", "added_tokens_decoder": {"259": token("<extra>", special=False)}}},
    "decoder marks": {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "added_tokens_decoder": {"257": token("<|im_start|>", lstrip=True, special=False)}}},
    "vocabulary only": IN_VOCAB | {"tokenizer_config": FAST | {"eos_token": "<extra>"}},
    "additional": IN_VOCAB | {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "additional_special_tokens": ["<extra>"]}},
    "extra": IN_VOCAB | {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "extra_special_tokens": [token("<extra>", rstrip=True)]}},
    "a model's own": IN_VOCAB | {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "extra_special_tokens": {"image_token": "<extra>"}}},
    "padding and unknown": {"tokenizer_config": FAST | {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": token("<|endoftext|>")}},
    "added_tokens.json": {"added_tokens": {"<extra>": 259, "<|im_end|>": 258}, "tokenizer_config": FAST | {"eos_token": "<|im_end|>"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_transformers_reads_it(source, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    files = dict(CASES[name])
    vocab = files.pop("__vocab__", {})
    spec(source, lambda s: s["model"]["vocab"].update({t["content"]: t["id"] for t in s["added_tokens"]} | vocab if vocab else {}))
    write(source, chat_template_jinja=TEMPLATE, **files)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    convert(source, tmp_path / "dst")
    ours = Tokenizer.load(tmp_path / "dst")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
        assert ours.encode(text, add_special=True) == theirs(text).input_ids, text
    # what names nothing is nothing to both; joined with `~`, transformers' undefined is nothing too
    template = ChatTemplate.load(tmp_path / "dst", ours)
    for generate in (False, True):
        assert template.render(TALK, generate) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=generate)
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    if theirs.eos_token_id is not None:
        assert config["eos_token_id"] == list(dict.fromkeys([theirs.eos_token_id, 258]))
    assert config["bos_token_id"] == (256 if theirs.bos_token_id is None else theirs.bos_token_id)
    model = load(tmp_path / "dst", "torch", device="cpu", threads=1)
    assert model.eos == {258} | ({theirs.eos_token_id} - {None}) and model.end_of_turn == (theirs.eos_token or "<|im_end|>")
    special = {i for i, t in theirs.added_tokens_decoder.items() if t.special}
    assert {i for i in range(ours.vocab_size) if ours.piece(i, skip_special=True) is None} == special


def test_whoever_opens_the_tokenizer_alone_has_the_same_tokens(source, tmp_path):
    from tokenizers import Tokenizer as Library

    write(source, tokenizer_config=CASES["decoder adds"]["tokenizer_config"])
    convert(source, tmp_path / "dst")
    assert Library.from_file(str(tmp_path / "dst" / "tokenizer.json")).encode("<extra>").ids == [259]


def test_without_such_files_nothing_is_written(source, tmp_path):
    convert(source, tmp_path / "dst")
    assert not (tmp_path / "dst" / "tokenizer_config.json").exists()
    assert (tmp_path / "dst" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("add", "want"), [({"add_bos_token": True}, [256]), ({"add_eos_token": True}, []), ({"add_bos_token": False}, [])])
def test_beginning_asked_for_by_tokenizer_config(source, tmp_path, add, want):
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    write(source, tokenizer_config=FAST | names | add)
    convert(source, tmp_path / "dst")
    assert Tokenizer.load(tmp_path / "dst").encode("hi", add_special=True) == [*want, *b"hi"]


def test_a_post_processor_counts_more(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [257], "tokens": ["<|im_start|>"]}}
    process = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    for add in (True, False):
        write(source, tokenizer_config=FAST | {"bos_token": "<|endoftext|>", "add_bos_token": add})
        spec(source, lambda s: s.update(post_processor=process))
        convert(source, tmp_path / f"dst{add}")
        theirs = transformers.AutoTokenizer.from_pretrained(source)
        assert Tokenizer.load(tmp_path / f"dst{add}").encode("hi", add_special=True) == theirs("hi").input_ids == [257, *b"hi"]


REFUSED = {
    "lacking": ({"tokenizer_config": {"eos_token": "<eot>"}}, "eos_token is '<eot>', which .*tokenizer.json does not have"),
    "lacking in the map": ({"special_tokens_map": {"bos_token": "<b>"}}, r"special_tokens_map.json: bos_token is '<b>'"),
    "lacking extra": ({"tokenizer_config": {"additional_special_tokens": ["<x>"]}}, r"additional_special_tokens\[0\] is '<x>'"),
    "used": ({"tokenizer_config": {"pad_token": "<p>"}, "chat_template_jinja": "{{ pad_token }}"}, "pad_token is '<p>'"),
    "another id": ({"tokenizer_config": {"added_tokens_decoder": {"257": token("<|im_end|>")}}}, r"added_tokens_decoder\[257\] has id 257, .* '<\|im_end\|>' id 258"),
    "a hole": ({"tokenizer_config": {"added_tokens_decoder": {"262": token("<new>")}}}, "has id 262, .* id 259"),
    "past the weights": ({"tokenizer_config": {"added_tokens_decoder": {str(i): token(f"<{i}>") for i in range(259, 270)}}}, "token id 269, vocab_size is 266"),
    "a number": ({"tokenizer_config": {"eos_token": 2}}, "eos_token 2 must be a token"),
    "no content": ({"tokenizer_config": {"eos_token": {"text": "x"}}}, "eos_token .* must be a token"),
    "no list": ({"tokenizer_config": {"additional_special_tokens": "<x>"}}, "additional_special_tokens must be a list"),
    "no ids": ({"tokenizer_config": {"added_tokens_decoder": {"x": token("<x>")}}}, r"added_tokens_decoder\[x\]"),
    "no object": ({"tokenizer_config": "[]"}, "must hold a JSON object, not list"),
    "no JSON": ({"special_tokens_map": "{"}, "special_tokens_map.json is not valid JSON"),
    "added elsewhere": ({"added_tokens": {"<|im_end|>": 5}}, "has id 5, .* id 258"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(source, tmp_path, name):
    files, said = REFUSED[name]
    write(source, **files)
    with pytest.raises(ConvertError, match=said) as error:
        convert(source, tmp_path / "dst")
    assert "\n" not in str(error.value) and not (tmp_path / "dst").exists()


def test_added_tokens_out_of_place(source, tmp_path):
    spec(source, lambda s: s["added_tokens"][2].update(id=262))
    with pytest.raises(ConvertError, match=r"tokenizer.json: added token '<\|im_end\|>' has id 262, its place gives it 258"):
        convert(source, tmp_path / "dst")


def test_a_padding_token_that_nothing_asks_for(source, tmp_path):
    write(source, tokenizer_config={"pad_token": "[PAD]", "eos_token": "<|im_end|>"})
    convert(source, tmp_path / "dst")
    assert Tokenizer.load(tmp_path / "dst").vocab_size == 259


def test_files_put_into_a_model_folder_later(source, tmp_path):
    """An old folder gets a tokenizer_config.json from its source: it counts, or is refused."""
    convert(source, tmp_path / "dst")
    (tmp_path / "dst" / "chat_template.jinja").write_text(TEMPLATE)
    assert load(tmp_path / "dst", "torch", device="cpu").eos == {258}
    write(tmp_path / "dst", tokenizer_config=FAST | {"bos_token": None, "eos_token": "<|endoftext|>"})
    model = load(tmp_path / "dst", "torch", device="cpu")
    assert model.eos == {256, 258} and model.template.render(TALK[:1]) == "user: Hi<|endoftext|>\n"
    write(tmp_path / "dst", tokenizer_config={"eos_token": "<eot>"})
    with pytest.raises(TokenizerError, match=r"dst.tokenizer_config.json: eos_token is '<eot>'"):
        Tokenizer.load(tmp_path / "dst")


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chosen"}]
TEMPLATES = {
    "file": ({"chat_template_jinja": "own", "tokenizer_config": {"chat_template": "other"}}, "own"),
    "config": ({"tokenizer_config": {"chat_template": "own"}}, "own"),
    "list": ({"tokenizer_config": {"chat_template": NAMED}}, "chosen"),
    "object": ({"tokenizer_config": {"chat_template": {"default": "chosen", "rag": "x"}}}, "chosen"),
    "processor": ({"chat_template": {"chat_template": "own"}}, "own"),
    "config before processor": ({"chat_template": {"chat_template": "other"}, "tokenizer_config": {"chat_template": "own"}}, "own"),
    "folder": ({"additional_chat_templates__default_jinja": "own", "tokenizer_config": {"chat_template": "other"}}, "own"),
    "folder beside": ({"additional_chat_templates__rag_jinja": "other", "chat_template_jinja": "own"}, "own"),
    "none": ({"tokenizer_config": {"chat_template": None}}, None),
    "empty": ({"tokenizer_config": {"chat_template": ""}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_where_a_template_may_be(source, tmp_path, name):
    files, want = TEMPLATES[name]
    write(source, **files)
    convert(source, tmp_path / "dst")
    found = tmp_path / "dst" / "chat_template.jinja"
    assert (found.read_text() if found.exists() else None) == want


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config": {"chat_template": NAMED[:1]}}, r"\['tool_use'\] but none called 'default'"),
        ({"additional_chat_templates__rag_jinja": "x"}, r"additional_chat_templates: .*\['rag'\] but none"),
        ({"tokenizer_config": {"chat_template": 5}}, "chat_template must be text or a list of named texts, not int"),
        ({"chat_template": {"chat_template": ["x"]}}, "chat_template must be text or a list of named texts, not list"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_chosen(source, tmp_path, files, said):
    write(source, **files)
    with pytest.raises(ConvertError, match=said):
        convert(source, tmp_path / "dst")


def test_every_file_of_text_goes_along(source, tmp_path):
    """Into an export and a folder packed for MLX."""
    from lm2.export.export import export_model
    from lm2.lm2_mlx.quantize import quantize_folder

    write(source, tokenizer_config=FAST | {"eos_token": "<|endoftext|>"}, chat_template_jinja=TEMPLATE)
    convert(source, tmp_path / "dst")
    export_model(tmp_path / "dst", tmp_path / "onnx")
    quantize_folder(tmp_path / "dst", tmp_path / "mlx", 4, 32)
    have = {name: (tmp_path / "dst" / name).read_bytes() for name in TEXT_FILES if (tmp_path / "dst" / name).exists()}
    assert "tokenizer_config.json" in have
    for made in ("onnx", "mlx"):
        assert {name: (tmp_path / made / name).read_bytes() for name in have} == have


@pytest.mark.parametrize("size", ["267", None, 267.0, True])
def test_vocabulary_size_that_is_none_is_the_configs_fault(source, tmp_path, size):
    config = json.loads((source / "config.json").read_text())
    write(source, config=config | {"vocab_size": size})
    with pytest.raises(ConvertError, match=r"config\.json: vocab_size .* must be a positive whole number"):
        convert(source, tmp_path / "dst")
