"""Turns put together one by one are what the template makes of the whole conversation."""

import pytest
from jinja2 import Environment

from lm2.models.training.turns import chat_turns

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = "<s>{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
TALK = [("user", "Hi there"), ("assistant", "Good day."), ("user", "Where is it?"), ("assistant", "In the shed.")]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["chatml", "marked"])
def test_turn_by_turn(template):
    turns = chat_turns(template)
    messages = [{"role": role, "content": content} for role, content in TALK]
    render = Environment().from_string(template).render
    assert turns.head + "".join(turns.wrap(*turn) for turn in TALK) == render(messages=messages)
    asked = turns.head + "".join(turns.wrap(*turn) for turn in TALK[:3]) + turns.opening
    assert asked == render(messages=messages[:3], add_generation_prompt=True)
    assert turns.wrap("user", "Hi there") != turns.wrap("assistant", "Hi there")


def test_the_head_stands_once():
    assert chat_turns(CHATML).head == "<|im_start|>system\nBe kind.<|im_end|>\n" and chat_turns(MARKED).head == "<s>"
