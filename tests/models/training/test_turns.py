"""Turns put together one by one are what the template makes of the whole conversation."""

import pytest
import tiny_tokenizer

from lm2.models.errors import TokenizerError
from lm2.models.text.dialogue import Dialogue
from lm2.models.text.template import ChatTemplate
from lm2.models.training.plan import TrainError
from lm2.models.training.turns import LLAMA, chat_turns

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
    render = ChatTemplate(template).render
    assert turns.head + "".join(turns.wrap(*turn) for turn in TALK) == render(messages)
    asked = turns.head + "".join(turns.wrap(*turn) for turn in TALK[:3]) + turns.opening
    assert asked == render(messages[:3], add_generation_prompt=True)
    assert turns.wrap("user", "Hi there") != turns.wrap("assistant", "Hi there")


def test_the_head_stands_once():
    assert chat_turns(CHATML).head == "<|im_start|>system\nBe kind.<|im_end|>\n" and chat_turns(MARKED).head == "<s>"


ZEPHYR = """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{% generation %}
{{ '<|assistant|>\n' + m['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\n' }}
{% endif %}
{% endfor %}"""
BOS = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
HEADED = "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}<{{ m.role }}>\n{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
SYSTEM = "{% if messages[0].role != 'system' %}{{ bos_token }}<system>Be kind.</system>{% endif %}" + HEADED.replace("{{ bos_token }}", "")
THINKS = tiny_tokenizer.CHATML.replace("assistant\n' }}", "assistant\n<think>\n\n</think>\n\n' }}")
LIKE = {"chatml": tiny_tokenizer.CHATML, "zephyr": ZEPHYR, "bos per message": BOS, "head": HEADED, "system": SYSTEM, "thinks": THINKS}


@pytest.mark.parametrize("name", LIKE)
def test_training_reads_what_a_session_reads(name):
    """The session's text, turn by turn: what it renders for each message, the answer as it was said, what closes it."""
    template = ChatTemplate(LIKE[name], LLAMA)
    dialogue, turns = Dialogue(template), chat_turns(LIKE[name])
    chat, trained = "", turns.head
    lead = turns.wrap("assistant", "Good day.").partition("Good day.")[0].removeprefix(turns.opening)  # the blank a model begins with
    for i, (role, content) in enumerate(TALK):
        if role == "user":
            chat += dialogue.turn(content, first=i == 0)
            assert chat == trained + turns.wrap(role, content) + turns.opening
        else:
            chat += lead + content + dialogue.close()
        trained += turns.wrap(role, content)
        assert role == "user" or trained == chat


def test_the_models_own_tokens():
    source = "{{ bos_token }}" + ZEPHYR
    assert chat_turns(source).head == "<s>" and chat_turns(source, {"bos_token": "[b]", "eos_token": "[e]"}).head == "[b]"
    assert "</s>" in chat_turns(source).wrap("user", "x")
    assert chat_turns(ChatTemplate(source, {"bos_token": "[b]", "eos_token": "[e]"})).wrap("user", "x") == "<|user|>\nx[e]\n"


REFUSED = {
    "numbered": ("{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}", "first turn in another way"),
    "last only": ("{{ messages[-1].content }}", "does not put turns one after the other"),
    "separated": ("{{ messages | map(attribute='content') | join(' | ') }}{% if add_generation_prompt %}:{% endif %}", "first turn in another way|one after"),
    "first with rules": ("{% for m in messages %}{% if loop.first %}<rules>Be kind.</rules>{% endif %}[{{ m.content }}{% if loop.first %}!{% endif %}]{% endfor %}", "first turn"),
    "content counts": (tiny_tokenizer.CHATML + "{% if add_generation_prompt and messages[-1].content | length > 20 %}Well, {% endif %}", "in different ways"),
    "shouts": ("{% for m in messages %}<{{ m.role }}>{{ m.content | upper if m.role == 'assistant' else m.content }}{% endfor %}", "an answer as it is"),
    "closes the first": ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if loop.index == 2 %}</>{% endif %}{% endfor %}", "closes a first one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_templates_whose_turns_are_not_the_conversation(name):
    source, said = REFUSED[name]
    with pytest.raises(TrainError, match=said) as error:
        chat_turns(source, name="m/chat_template.jinja")
    assert str(error.value).startswith("m/chat_template.jinja ") and str(error.value).endswith("another template for --task chat")


def test_a_template_that_refuses():
    with pytest.raises(TokenizerError, match="refuses the conversation: no talk without a system"):
        chat_turns("{% if messages[0].role != 'system' %}{{ raise_exception('no talk without a system') }}{% endif %}")
