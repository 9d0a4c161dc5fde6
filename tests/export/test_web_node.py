"""The browser's JavaScript where Node runs it, without onnxruntime: tokens, turns, random numbers and session files, each beside Python's own. Skips without node."""

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiny_model

pytest.importorskip("onnx")
from lm2 import Session
from lm2.export.web_text import tokens_block, wording_block
from lm2.models.errors import ConvertError
from lm2.models.home import shipped_model
from lm2.models.text.dialogue import Dialogue, PlainTemplate
from lm2.models.text.rendered import encode_head, encode_turn
from lm2.models.text.template import ChatTemplate
from lm2.models.text.tokenizer import Tokenizer
from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampler, Sampling, uniform
from lm2.runtime.statefile.file import read_session
from lm2.runtime.statefile.keeping import expected

HERE = Path(__file__).parent / "web"
ROOT = Path(__file__).parent.parent.parent
TEXTS = [
    "", " ", "Hello, world!", "Mary went to the kitchen.\nWhere's the football?", "it's we'll I'M don'T", "  two  blanks \n\n\t end  ", "naïve café, Ünïcödé ﬁ", "日本語の文章。한국어 العربية",
    "12345 x1y22 ⅷ ² ٣", "👩‍👩‍👧‍👦 \U0001f600\ufe0f", "\ufeffmark \u0085next\u00a0x\u2028y\u3000z\u200b.", "a\x00b\x1c\x1d c", "<|im_end|> <|end|><|user|>", "<|im_start|>user\nx<|im_end|>", "<|im_<|im_end|>end|>",
    "x" * 3000, "ab" * 500 + "1" * 40, "-- != => /* */ `code`", "\r\n\r\n", "e\u0301 \u0301 a\u0308b",
]  # fmt: skip


@pytest.fixture(scope="module")
def node():
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


def ran(node, name, *args, said=None):
    """Lines of a program in web/, each read as JSON."""
    done = subprocess.run([node, str(HERE / name), *map(str, args)], input=json.dumps(said), capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def own_texts():
    """What the project itself says: every document, and code."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "models" / "text").glob("*.py")), HERE / "text.mjs"]
    return [file.read_text(encoding="utf-8") for file in files]


def random_texts(count, seed=7):
    """Characters of all kinds, side by side."""
    draw = random.Random(seed)
    kinds = ["abcXYZ", " \t\n\r\u00a0\u2003", "0123456789٣²Ⅷ", ".,!?'\"-_<|>", "éüßñ日本語ひらがな한글", "\U0001f600\U0001f3fd\u200d\ufe0f", "'s 't 're 've 'm 'll 'd"]
    return ["".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randint(1, 80))) for _ in range(count)]


def web_folder(model, out):
    """What the browser reads of a model folder's texts: its tokenizer.json, and web.json without the rest."""
    tokenizer = Tokenizer.load(model)
    template = ChatTemplate.load(model, tokenizer) or PlainTemplate(tokenizer.begin)
    out.mkdir()
    shutil.copyfile(model / "tokenizer.json", out / "tokenizer.json")
    (out / "web.json").write_text(json.dumps({"text": tokens_block(tokenizer), "wording": wording_block(template, "", model.name)}))
    return out, tokenizer, template


@pytest.fixture(scope="module", params=["lm2-tiny", "lm2-babi", "tiny", pytest.param("smollm2", marks=pytest.mark.real)])
def texts(request, tmp_path_factory):
    """(a folder as the browser reads it, tokenizer, template) of a model."""
    root = tmp_path_factory.mktemp("web")
    if request.param == "smollm2":
        model = request.getfixturevalue("smollm2")
    else:
        model = tiny_model.make(root / "tiny") if request.param == "tiny" else shipped_model(request.param)
    return web_folder(model, root / "web")


def test_the_same_tokens(node, texts):
    folder, tokenizer, _ = texts
    asked = [(text, plain) for text in [*TEXTS, *own_texts(), *random_texts(300)] for plain in (False, True)]
    for (text, plain), (ids, again) in zip(asked, ran(node, "text.mjs", folder, said=asked), strict=True):
        assert ids == tokenizer.encode(text, plain=plain), (text[:60], plain)
        assert again == tokenizer.decode(ids)


def test_every_character(node, texts):
    """Each character of Unicode between a letter, a digit and a blank: splitting words is where readers differ. Characters that one side's Unicode does not know yet are left out."""
    folder, tokenizer, _ = texts
    known = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) not in ("Cn", "Co")]
    lines = ["".join(f"a{c}1{c} {c}" for c in known[at : at + 200]) for at in range(0, len(known), 200)]
    wrong = []
    for line, (ids, _) in zip(lines, ran(node, "text.mjs", folder, said=[(line, False) for line in lines]), strict=True):
        if ids != tokenizer.encode(line):
            wrong.append(line)
    singles = [c for line in wrong for c in line if not c.isascii()]
    asked = [(f"a{c}1{c} {c}", False) for c in dict.fromkeys(singles)]
    differ = [text[1] for (text, _), (ids, _) in zip(asked, ran(node, "text.mjs", folder, said=asked), strict=True) if ids != tokenizer.encode(text)]
    assert differ == [], f"{len(differ)}: {[hex(ord(c)) for c in differ[:40]]}"


def test_half_a_pair_is_refused(node, texts):
    folder, *_ = texts
    done = subprocess.run([node, str(HERE / "text.mjs"), str(folder)], input='[["a\\ud800b", false]]', capture_output=True, text=True)
    assert json.loads(done.stdout)[0] is None and "surrogate" in json.loads(done.stdout)[1], done.stderr


def test_the_same_turns(node, texts):
    folder, tokenizer, template = texts
    said = [text for text in TEXTS if text.strip()] + random_texts(40)
    web = json.loads((folder / "web.json").read_text())
    systems = [None, "Be brief.", " <|im_end|>\n "] if web["wording"]["under"] else [None]
    asked = [(system, message) for system in systems for message in said]
    for (system, message), made in zip(asked, ran(node, "turns.mjs", folder, said=asked), strict=True):
        d = Dialogue(template, system)
        want = [encode_head(tokenizer, d), encode_turn(tokenizer, d, message, True), encode_turn(tokenizer, d, message, False), tokenizer.encode(d.close())]
        assert made == want, (system, message)
    if not web["wording"]["under"]:
        assert ran(node, "turns.mjs", folder, said=[("Be brief.", "Hi")]) == ["PromptError"]


def test_a_template_that_does_more_is_refused(tmp_path):
    """Texts that depend on the message cannot be put around it; a trimmed message can."""
    tokenizer = Tokenizer.load(shipped_model("lm2-tiny"))
    base = "{% for m in messages %}<|user|>{{ SAID }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    for shown, fine in (("m.content", True), ("m.content | trim", True), ("m.content | upper", False), ("m.content.split('</think>')[-1]", False), ("m.content[:20]", False)):
        template = ChatTemplate(base.replace("SAID", shown))
        if fine:
            assert wording_block(template, "", "x")["trims"]["user"] == ("trim" in shown)
        else:
            with pytest.raises(ConvertError, match="chat template of x does more with the message"):
                wording_block(template, "", "x")
    assert tokens_block(tokenizer)["control"] == [0, 1, 2]


def test_the_same_random_numbers(node):
    asked = [{"seed": str(seed), "draws": draws, "count": 20} for seed in (0, 7, 2**63, 2**64 - 1) for draws in (0, 1000, 2**40)]
    for one, made in zip(asked, ran(node, "draws.mjs", said=asked), strict=True):
        assert made == [uniform(int(one["seed"]), one["draws"] + i) for i in range(20)]


def test_the_same_draws(node):
    """Sampling settings of every kind over peaked, flat and tied logits: token for token. Exponentials may differ in the last digit, so a draw that falls on a border could; none here does."""
    rng = np.random.default_rng(5)
    asked = []
    for i in range(120):
        kind = ("peaked", "flat", "tied", "masked")[i % 4]
        logits = rng.normal(0, 4 if kind == "peaked" else 0.3, 300).astype(np.float32)
        if kind == "tied":
            logits = np.round(logits)
        row = [float(x) for x in logits]
        if kind == "masked":
            row = [None if j % 3 else x for j, x in enumerate(row)]
        settings = {
            "temperature": (0.0, 0.2, 0.7, 1.0, 3.0)[i % 5], "top_k": (0, 1, 5, 40, 1000)[i // 5 % 5], "top_p": (1.0, 0.9, 0.3, 0.0)[i // 3 % 4], "min_p": (0.0, 0.05, 0.5)[i % 3],
            "repetition_penalty": (1.0, 1.3, 0.7)[i // 7 % 3], "repetition_window": (64, 2, 0)[i // 2 % 3],
        }  # fmt: skip
        asked.append({"settings": settings, "seed": str(i * 10**12), "draws": i, "logits": row, "recent": [int(x) for x in rng.integers(0, 300, 9)], "count": 50})
    drawn = 0
    for one, made in zip(asked, ran(node, "draws.mjs", said=asked), strict=True):
        sampler = Sampler(Sampling(**one["settings"]), int(one["seed"]), one["draws"])
        logits = np.array([-np.inf if x is None else x for x in one["logits"]], np.float32)
        assert made == [sampler.sample(logits, one["recent"]) for _ in range(50)], one["settings"]
        drawn += len(set(made))
    assert drawn > 5 * len(asked), "the control: the draws are many different ones"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_model.make(tmp_path_factory.mktemp("m") / "tiny"), backend="torch", device="cpu", threads=1)


@pytest.fixture
def wanted(model, tmp_path):
    """What a browser expects of a session file of `model`."""
    e = expected(model)
    about = {
        "fingerprint": e.fingerprint, "model": e.model, "tokenizer": e.tokenizer, "bankShape": list(e.bank_shape), "vocabulary": e.vocab_size, "window": e.window,
        "eps": model.config.rms_norm_eps,
    }  # fmt: skip
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(about))
    return path, about


def test_files_go_through_unchanged(node, model, wanted, tmp_path):
    """Python's file, read and written by the browser's code, is the same record again: banks to the bit, moments, transcript, ledgers."""
    session, files = Session(model, seed=2**64 - 1), []
    for i, message in enumerate(("hello", "a\u2028b \U0001f600 \"q\" \\ \x7f\x1f", "y" * 90, "four")):
        session.say(message, 12)
        files.append(tmp_path / f"{i}.lm2s")
        session.save(files[-1])
    made = ran(node, "files.mjs", wanted[0], *files)
    for path, found in zip(files, made, strict=True):
        assert "error" not in found, found
        first, again = (read_session(p, expected(model)) for p in (path, path.with_name(path.name + ".again")))
        assert first.meta == again.meta and first.document == again.document
        for a, b in zip((first.now, *first.snapshots), (again.now, *again.snapshots), strict=True):
            assert np.array_equal(a.bank, b.bank) and (a.written, a.tokens, a.notes, a.carried, a.folds) == (b.written, b.tokens, b.notes, b.carried, b.folds)
    assert made[-1]["carried"] > 0 and made[-1]["snapshots"] == 4, "the control: a window was left"


def test_damage_is_found(node, model, wanted, tmp_path):
    """Any byte that was changed, any length that is not the file's: an error of the format's own, and nothing is given out."""
    session = Session(model, seed=1)
    session.say("hello", 8)
    good = tmp_path / "good.lm2s"
    session.save(good)
    data, draw, files = good.read_bytes(), random.Random(3), []
    head = 8 + int.from_bytes(data[:8], "little")
    places = [0, 7, 8, 9, head - 1, head, len(data) - 1, *(draw.randrange(8, head) for _ in range(60)), *(draw.randrange(len(data)) for _ in range(30))]
    for i, at in enumerate(places):
        files.append(tmp_path / f"bit{i}.lm2s")
        files[-1].write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
    for i, size in enumerate((0, 7, 8, 100, head, len(data) - 1)):
        files.append(tmp_path / f"cut{i}.lm2s")
        files[-1].write_bytes(data[:size])
    for i, more in enumerate((b"\0", b"x" * 100)):
        files.append(tmp_path / f"more{i}.lm2s")
        files[-1].write_bytes(data + more)
    made = ran(node, "files.mjs", wanted[0], good, *files)
    assert "error" not in made[0]
    for path, found in zip(files, made[1:], strict=True):
        assert found.get("error", "").startswith("Session") and "FILE" in found["message"] and "\n" not in found["message"], (path.name, found)
    by_name = {path.name: found["error"] for path, found in zip(files, made[1:], strict=True)}
    assert all(by_name[f"cut{i}.lm2s"] == "SessionTruncatedError" for i in range(6)), by_name
    assert by_name["more0.lm2s"] == "SessionFormatError"


def test_what_belongs_to_another_is_refused(node, model, wanted, tmp_path):
    session = Session(model, seed=1)
    session.say("hello", 8)
    file, about = tmp_path / "s.lm2s", wanted[1]
    session.save(file)
    for change, error in (
        ({"fingerprint": "0" * 64}, "SessionModelError"), ({"tokenizer": "0" * 64}, "SessionTokenizerError"), ({"bankShape": [1, 1, 3, 3]}, "SessionShapeError"),
        ({"window": 5}, "SessionShapeError"), ({"vocabulary": 50}, "SessionValueError"), ({"window": 40}, "SessionValueError"), ({}, None),
    ):  # fmt: skip
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(about | change))
        [found] = ran(node, "files.mjs", path, file)
        assert found.get("error") == error, (change, found)


def test_older_and_newer_versions(node, model, wanted, tmp_path):
    """Version 1 is named with its remedy; so is one of a newer lm2."""
    from lm2.models.tensorfile import build_header
    from lm2.runtime.statefile.check import ARRAYS, header_digest

    session = Session(model, seed=1)
    session.say("hello", 8)
    file = tmp_path / "s.lm2s"
    session.save(file)
    data = file.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:head])
    meta = header.pop("__metadata__")
    for version, said in (("1", "version 1"), ("3", "newer lm2"), ("x", "version x")):
        plan = [(name, dtype, tuple(header[name]["shape"])) for name, dtype in ARRAYS.items()]
        strings = {k: v for k, v in meta.items() if k != "header_sha256"} | {"version": version}
        strings["header_sha256"] = header_digest(build_header(plan, strings)[8:], "")
        file.write_bytes(build_header(plan, strings) + data[head:])
        [found] = ran(node, "files.mjs", wanted[0], file)
        assert found["error"] == "SessionVersionError" and said in found["message"], found


@pytest.mark.skipif(sys.platform == "win32", reason="paths")
def test_the_wheel_would_carry_it():
    """Every file of the browser's folder is covered by the package data's pattern."""
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lm2.export"]
    folder = ROOT / "export"
    carried = {p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
    have = {p for p in (folder / "browser").rglob("*") if p.is_file()}
    assert have and have <= carried
