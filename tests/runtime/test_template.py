"""Chat templates: rendering as transformers does it, the sandbox, the budget, and one-line errors."""

import json
import re
import time
from datetime import datetime

import pytest
import tiny_tokenizer

from lm2.models.errors import ModelFileError, PromptError, TokenizerError
from lm2.models.text import sandbox
from lm2.models.text.template import ChatTemplate
from lm2.models.text.tokenizer import Tokenizer

CHATML_SYSTEM = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content|trim ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- set date_string = date_string if date_string is defined else '26 Jul 2024' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for t in tools %}{{ t | tojson(indent=4) }}{{ "\\n\\n" }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set lead = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}{% set rest = messages %}{% set lead = '' %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set content = lead + message['content'] if loop.first else message['content'] %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
{% endif %}
{% endfor %}"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
FEATURES = """{% macro turn(m, last=false) %}[{{ m.role[:1] }}|{{ m.content | tojson }}{{ '!' if last }}]{% endmacro %}
{% set ns = namespace(count=0, found=none) %}
{% for m in messages | reverse %}
    {% if m.role == 'tool' %}{% continue %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {% if ns.count > 3 %}{% break %}{% endif %}
{{ turn(m, loop.last) }}{{ loop.cycle('a', 'b') }}{{ loop.index ~ '/' ~ loop.length }}
{% endfor %}
{% for m in messages if m.role == 'user' %}{{ m.content | upper | replace('O', '0') }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}
{{ {'b': [1, 2.5, none, true], 'a': '<é "q">'} | tojson }} {{ messages | map(attribute='role') | join('+') }}
{{ 'x' * 3 ~ (2 ** 5) ~ (7 // 2) }} {{ "%s-%03d" | format('n', 7) }} {{ ns.count }} {{ missing }}{{ missing is defined }}
{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is iterable else a }};{% endfor %}
{% set body %}
 indented {{ messages | length }}
{% endset %}
{{ body | trim | indent(2) }}{% if documents is none %} no documents{% endif %} {{ add_generation_prompt }}"""
TEMPLATES = {
    "chatml": tiny_tokenizer.CHATML, "chatml-system": CHATML_SYSTEM, "llama3": LLAMA3, "llama2": LLAMA2, "zephyr": ZEPHYR,
    "features": FEATURES,
}  # fmt: skip
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hello <b>\n\n  you & 'me' "},
    {"role": "assistant", "content": "Hi \U0001f389 naïve"},
    {"role": "user", "content": "Bye\t{{ 7 * 7 }} {% raw %}"},
]
TALKS = [TALK, TALK[:2], TALK[1:], TALK[1:2], [*TALK, {"role": "assistant", "content": ""}]]
TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tiny_tokenizer.library().to_str().encode())


@pytest.fixture(scope="module")
def hf():
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.library(), **TOKENS)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generate", [False, True])
def test_renders_as_transformers_does(name, generate, hf):
    ours = ChatTemplate(TEMPLATES[name], TOKENS)
    for talk in TALKS:
        theirs = hf.apply_chat_template(talk, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=generate)
        assert ours.render(talk, generate) == theirs


def test_extra_variables_reach_the_template(hf):
    tools = [{"type": "function", "function": {"name": "naïve", "parameters": {"a": [1, 2]}}}]
    ours = ChatTemplate(LLAMA3, TOKENS).render(TALK, tools=tools, date_string="1 Jan 2030")
    assert "1 Jan 2030" in ours and '"naïve"' in ours
    assert ours == hf.apply_chat_template(TALK, chat_template=LLAMA3, tokenize=False, tools=tools, date_string="1 Jan 2030")


def test_further_keys_of_a_message_reach_the_template_and_nothing_is_changed():
    talk = [{"role": "tool", "content": "42", "name": "sum"}]
    assert ChatTemplate("{{ messages[0].name }}={{ messages[0].content }}").render(talk) == "sum=42"
    assert talk == [{"role": "tool", "content": "42", "name": "sum"}]


def test_strftime_now_is_now():
    said = ChatTemplate("{{ strftime_now('%Y-%m') }}").render([])
    assert said == datetime.now().strftime("%Y-%m")


def test_rendering_twice_gives_the_same_and_templates_keep_nothing():
    template = ChatTemplate("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ messages | length }}")
    assert [template.render(TALK), template.render([]), template.render(TALK)] == ["14", "10", "14"]


def test_load_takes_bos_and_eos_from_the_config(tmp_path, tokenizer):
    folder = tiny_tokenizer.make(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|é", encoding="utf-8")
    assert ChatTemplate.load(folder, tokenizer).render([]) == "||é"
    config = {"bos_token_id": 257, "eos_token_id": [258, 256]}
    (folder / "config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(folder, tokenizer).render([]) == "<|im_start|>|<|im_end|>|é"
    for bad, said in ((300, "bos_token_id: .* has no token 300"), ("x", "bos_token_id 'x' must be a token id")):
        (folder / "config.json").write_text(json.dumps({"bos_token_id": bad}))
        with pytest.raises(TokenizerError, match=said):
            ChatTemplate.load(folder, tokenizer)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config.json is not valid JSON"):
        ChatTemplate.load(folder, tokenizer)


def test_no_template_is_none_and_the_tiny_one_is_chatml(tmp_path, tokenizer):
    assert ChatTemplate.load(tmp_path, tokenizer) is None
    template = ChatTemplate.load(tiny_tokenizer.make(tmp_path / "m"), tokenizer)
    said = template.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert said == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def refused(source, said, messages=TALK, **extra):
    """The template is refused at load or when rendered, quickly, in one line that names the file."""
    started = time.perf_counter()
    with pytest.raises(TokenizerError) as error:
        ChatTemplate(source, TOKENS, "m/chat_template.jinja").render(messages, **extra)
    text = str(error.value)
    assert re.search(said, text), text
    assert text.startswith("m/chat_template.jinja") and "\n" not in text and len(text) < 500
    assert time.perf_counter() - started < 9


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['datetime'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].clear() }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ loop.__class__ }}{% for x in [1] %}{{ loop._iterator.gi_frame.f_back }}{% endfor %}",
    ],
)
def test_the_sandbox_holds(source):
    """Each reaches for Python's insides or for what it was given; refused, or harmlessly undefined."""
    talk = [dict(m) for m in TALK]
    try:
        said = ChatTemplate(source, TOKENS).render(talk)
    except TokenizerError as error:
        assert re.search("unsafe|undefined|loader", str(error)), error
    else:
        assert said == ""
    assert talk == TALK


def test_syntax_errors_name_file_and_line():
    refused("a\nb\n{% if %}", r"chat_template.jinja line 3: ")
    refused("{% for x in y %}", "line 1: Unexpected end of template")
    refused("{{ x | no_such_filter }}", "No filter named 'no_such_filter'")
    refused("{{ (" + "(" * 5000 + "1" + ")" * 5001 + " }}", "cannot be compiled")


def test_failures_are_one_line():
    refused("{{ messages[9].content + 'x' }}", "failed: .*has no element 9")
    refused("{{ 1 / 0 }}", "division by zero")
    refused("{{ no_such_token + 'x' }}", "'no_such_token' is undefined")
    refused("{{ 'x'.encode('a' * 1000) }}", "unknown encoding")
    refused("{{ raise_exception('No\n\nsystem role ' ~ 'x' * 1000) }}", "refuses the conversation: No system role x")


def test_alternation_is_enforced():
    refused(LLAMA2, "refuses the conversation: Roles must alternate", [TALK[1], TALK[3]])


RUNAWAY = {
    "wide range": ("{% for i in range(200000) %}{% endfor %}", "Range too big"),
    "nested ranges": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 100000 steps"),
    "long output": ("{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}", "makes a text or list of"),
    "long variable": ("{% set s %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endset %}{{ s | length }}", "makes a text"),
    "doubling ~": ("{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "makes a text or list of"),
    "doubling +": ("{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}", "makes a text or list of"),
    "growing list": ("{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}", "makes a text or list of"),
    "times": ("{{ 'x' * 10 ** 10 }}", "makes a text or list of"),
    "power": ("{{ 9 ** (9 ** 9) }}", "more than 1024 bits"),
    "width": ("{{ 'x'.ljust(10 ** 10) }}", "passes 10000000000 to a function"),
    "filter width": ("{{ 'x' | center(10 ** 10) }}", "10000000000"),
    "endless macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    "branching macro": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "more than 100000 steps"),
    "branching loop": ("{% for x in [[[[[[[[1]*9]*9]*9]*9]*9]*9]*9]*9 recursive %}{{ loop(x) if x is iterable }}{% endfor %}", "steps"),
    "json": ("{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}", "steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNAWAY)
def test_a_template_that_runs_away_is_stopped(name, monkeypatch):
    monkeypatch.setattr(sandbox, "STEPS_MAX", 100_000)
    refused(*RUNAWAY[name])


def test_a_slow_template_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS_MAX", 0.2)
    slow = "{% for i in range(99999) %}{{ messages[0].content | upper | lower | length }}{% endfor %}"
    refused(slow, "more than 0 seconds", [{"role": "user", "content": "x" * 1_000_000}])


def test_a_long_conversation_is_no_runaway():
    talk = [{"role": "user", "content": "word " * 400_000}, *TALK[1:] * 2000]
    assert len(ChatTemplate(CHATML_SYSTEM, TOKENS).render(talk)) > 2_000_000


def test_load_refuses_what_is_no_template_file(tmp_path, tokenizer):
    file = tmp_path / "chat_template.jinja"
    file.write_bytes(b"ab\xff")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja is not UTF-8 \(byte 2\)"):
        ChatTemplate.load(tmp_path, tokenizer)
    file.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(TokenizerError, match="more than the 1048576 allowed"):
        ChatTemplate.load(tmp_path, tokenizer)
    file.unlink()
    file.mkdir()
    with pytest.raises(TokenizerError, match="cannot read"):
        ChatTemplate.load(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "bot", "content": "x"}], r"messages\[0\].role 'bot' must be one of system, user, assistant, tool"),
        ([TALK[0], {"role": "user", "content": None}], r"messages\[1\].content must be text, not NoneType"),
        ([{"role": "user", "content": [{"text": "x"}]}], r"messages\[0\].content must be text, not list"),
        ([{"content": "x"}], r"messages\[0\].role None must be"),
        (["hi"], r"messages\[0\] must have a role and a content, not be str"),
        ("hi", "messages must be a list of messages, not str"),
        (TALK[0], "messages must be a list of messages, not dict"),
        ([{"role": "user", "content": "ab\udc00"}], r"messages\[0\].content has half of a surrogate pair \(U\+DC00\) at character 2"),
    ],
)  # fmt: skip
def test_messages_are_checked(messages, said):
    with pytest.raises(PromptError, match=said):
        ChatTemplate(tiny_tokenizer.CHATML).render(messages)
