"""Llama: what every other family is brought to. A window of attention, layers without rotary embedding, factors and experts are not its."""

from .family import Family

LLAMA = Family("llama")
