"""Running a template that came with a model: no way out of it, no end without an end. Knows Jinja, not chats.

Jinja's immutable sandbox keeps a template from Python's internals. On top of it, each rendering has a budget of loop
rounds, calls, seconds and characters. It stops templates that run away; it is no wall against one made to exhaust
memory inside a single operation.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from types import CodeType
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS_MAX = 1_000_000
SECONDS_MAX = 10.0
SIZE_ARGUMENT_MAX = 1_000_000
CHARS_MAX = 1 << 20
GROWN_MAX = 1 << 28
GROWING = ("replace", "do_replace", "join", "sync_do_join", "do_join", "indent", "do_indent", "expandtabs")
_STEPS, _JOIN = "lm2 steps", "lm2 join"  # with a blank: no template can name them


class RunawayError(TemplateError):
    """A template used up its budget."""


class Refusal(TemplateError):
    """A template called raise_exception."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's part for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Metered(NodeTransformer):
    """Passes what a loop runs over, and what `~` joins, through the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _STEPS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOIN)


class Sandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment as chat templates expect it (those of transformers), for ONE rendering of at most `chars`
    characters.

    trim_blocks, lstrip_blocks, loop controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`.
    """

    intercepted_binops = frozenset(("+", "*", "**"))

    def __init__(self, chars: int = CHARS_MAX):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], optimized=False, cache_size=0)
        self.chars = chars
        self.steps = STEPS_MAX
        self.deadline = time.monotonic() + SECONDS_MAX
        self.filters = {name: self._guarded(f) for name, f in self.filters.items()}
        self.filters |= {"tojson": self._to_json, _STEPS: self._rounds, _JOIN: self.concat}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        del self.globals["lipsum"]

    def program(self, source: str) -> CodeType:
        """Compile a template. Raises TemplateSyntaxError; RecursionError or another Exception for absurd ones."""
        return self.compile(_Metered().visit(self.parse(source)), filename="<chat template>")

    def run(self, program: CodeType, values: dict[str, Any]) -> str:
        """Render a compiled template. Raises RunawayError, Refusal, or whatever the template provokes."""
        template = self.template_class.from_code(self, program, self.make_globals(None))
        parts, size = [], 0
        for part in template.generate(values):
            self._step()
            size += len(part)
            self._fits(size)
            parts.append(part)
        return "".join(parts)

    def concat(self, parts: Iterable[Any]) -> str:
        """Join text; Jinja does it for macros and blocks, `~` comes here too."""
        texts = [str(part) for part in parts]
        self._fits(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._step()
        if operator == "*":
            for many, of in ((left, right), (right, left)):
                if isinstance(many, int) and hasattr(of, "__len__"):
                    self._fits(many * len(of))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._fits(len(left) + len(right))
        if operator != "+" and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > 1024:
                raise RunawayError("it computes with numbers of more than 1024 bits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._step()
        __self._sizes(*args, *kwargs.values())
        if isinstance(text := getattr(__obj, "__self__", None), str):
            __self._grows(__obj.__name__, text, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose numbers and result are looked at; `wraps` keeps the mark by which Jinja knows what to pass it."""

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._step()
            self._sizes(*args[1:], *kwargs.values())
            self._grows(function.__name__, *args, *kwargs.values())
            result = function(*args, **kwargs)
            if isinstance(result, str):
                self._fits(len(result))
            return result

        return guarded

    def _to_json(self, x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        self._sizes(indent)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        parts, size = [], 0
        for part in self._rounds(encoder.iterencode(x)):
            size += len(part)
            self._fits(size)
            parts.append(part)
        return "".join(parts)

    def _rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _sizes(self, *arguments: Any) -> None:
        for x in arguments:
            if isinstance(x, int) and abs(x) > SIZE_ARGUMENT_MAX:
                raise RunawayError(f"it passes {x} to a function; at most {SIZE_ARGUMENT_MAX} is allowed")

    def _grows(self, name: str, *arguments: Any) -> None:
        """What puts a text (or a number of blanks) into another at many places may make as much as their product."""
        if name in GROWING:
            sizes = sorted(len(x) if hasattr(x, "__len__") else x if isinstance(x, int) else 1 for x in arguments)
            self._fits(math.prod(sizes[-2:]), GROWN_MAX)

    def _step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise RunawayError(f"it takes more than {STEPS_MAX} steps")
        if time.monotonic() > self.deadline:
            raise RunawayError(f"it takes more than {SECONDS_MAX:.0f} seconds")

    def _fits(self, size: int, most: int = 0) -> None:
        most = most or self.chars
        if size > most:
            raise RunawayError(f"it makes a text or list of {size}, more than the {most} allowed here")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _refuse(message: object) -> NoReturn:
    raise Refusal(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)
