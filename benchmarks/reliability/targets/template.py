"""Chat templates. Right means: the text that Jinja itself gives in the environment transformers sets up."""

from pathlib import Path
from random import Random

import kit
import tiny_tokenizer
from mutate import NUMBERS, mutate_bytes

from lm2.models.errors import LM2Error
from lm2.models.text.template import ChatTemplate

from . import Target

LLAMA3 = """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls|length != 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"""
MACROS = """{% macro line(role, text, width=3) %}{{ role|upper }}{{ ':' * width }} {{ text|replace('a', 'b')|indent(2) }}{% endmacro %}
{% set ns = namespace(n=0, last='') %}{% for m in messages if m.content %}{% set ns.n = ns.n + 1 %}{{ line(m.role, m.content) ~ '|' ~ ns.n }}
{% if loop.last and m.role == 'user' %}{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}{% endif %}{% if ns.n > 5 %}{% break %}{% endif %}
{% endfor %}{{ messages | map(attribute='role') | join(', ') }} {{ range(3) | list }} {{ '%d' % ns.n }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}"""
TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello a\nb"}],
    [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi  "}, {"role": "assistant", "content": "é 日本 {{ 1 }}"}, {"role": "user", "content": ""}],
]
WORDS = ["messages", "messages[0]", "message", "loop", "loop.index", "role", "content", "0", "-1", "''", "none", "true", "{% break %}", "{% continue %}", "{% endif %}",
         "{% endfor %}", "{% if true %}", "{% else %}", "{{", "}}", "{%", "%}", "-%}", "{#", "#}", "|", "|trim", "|length", "|tojson", "|list", "|join", "|first", "|last", "|sort",
         "|reverse", "|batch(2)", "|slice(3)", "|int", "|float", "|string", "|safe", "|escape", "|e", "|urlize", "|wordwrap(3)", "|center(9)", "|truncate(4)", "|random", "|sum",
         "|unique", "|map('upper')", "|format(1)", "|xmlattr", "|groupby('role')", "|dictsort", "|items", "|attr('role')", "|default('x')", "|round", "|abs", "|pprint", "|striptags",
         "|filesizeformat", "|title", "|wordcount", " + ", " * ", " ** ", " ~ ", " // ", " % ", " in ", " is defined", " is string", " and ", " not ", "range(9)", "range(1000000)",
         "dict(a=1)", "cycler(1,2)", "joiner()", "namespace()", "strftime_now('%Y')", "raise_exception('no')", "{% for i in range(9) %}", "{% set x = 1 %}", "{% macro f() %}",
         "{% endmacro %}", "{% call f() %}", "{% raw %}", "{% endraw %}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% block a %}", "{% filter upper %}",
         ".__class__", ".__init__.__globals__", "['__class__']", ".items()", ".keys()", ".split()", ".format(1)", ".format_map({})", "[::-1]", "[1:]", "[:1]", "self", "caller()",
         "super()", "varargs", "{% generation %}", "{% endgeneration %}", "{% autoescape true %}", "{% trans %}", "{% debug %}", "{% do x %}", "{% with %}", "recursive", "loop(messages)",
         "'%s' % 1", "'{:>9999999}'.format(1)", "'%999999999d' % 1", "('a' * 99999)", "(9 ** 99)", "'\\ud800'", "'\\x00'", "\n", "    "]  # fmt: skip


def target(place: Path) -> Target:
    seeds = [t.encode() for t in (tiny_tokenizer.CHATML, LLAMA3, MISTRAL, MACROS)]
    file = place / "chat_template.jinja"
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}

    def check(data: bytes) -> str:
        file.write_bytes(data)
        try:
            source = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return "not UTF-8"
        said = ""
        try:
            template = ChatTemplate(source, tokens, str(file))
            texts = [template.render(talk, add_generation_prompt=talk is TALKS[0]) for talk in TALKS]
        except LM2Error as error:
            said = kit.check_refusal(error, file) + f": {error}"
            return said
        for talk, text in zip(TALKS, texts, strict=True):
            if "random" in source or "strftime_now" in source or "cycler" in source:
                continue
            want = jinja(source, talk, tokens, talk is TALKS[0])
            kit.need("0x" in text.replace(", ", "") or text == want, f"{text[:300]!r} is not what Jinja makes: {want[:300]!r}")
        return ""

    return Target("template", seeds, mutate, check)


def jinja(source: str, talk: list[dict[str, str]], tokens: dict[str, str], prompt: bool) -> str:
    """What transformers makes of it, or why it does not."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source).render(messages=talk, tools=None, documents=None, add_generation_prompt=prompt, **tokens)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def mutate(rng: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(7)
        if kind <= 2:
            text = text[:at] + rng.choice(WORDS) + text[at:]
        elif kind == 3:
            text = text[:at] + text[at + rng.choice((1, 2, 5, 20)) :]
        elif kind == 4:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + rng.choice((5, 30))] + text[at:]
        elif kind == 5:
            word = rng.choice(WORDS)
            places = [i for i in range(len(text)) if text.startswith(("'", "message", "(", "|"), i)]
            at = rng.choice(places) if places else at
            text = text[:at] + "(" + word + ")" + text[at:]
        else:
            digits = [i for i, c in enumerate(text) if c.isdigit()]
            if digits:
                at = rng.choice(digits)
                text = text[:at] + str(rng.choice(NUMBERS)) + text[at + 1 :]
    return text.encode("utf-8", "replace")
