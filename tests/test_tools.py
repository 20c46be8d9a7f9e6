"""What a model writes is checked before anything is done with it."""

import json

import pytest
import regex

from utils import tools

SCHEMAS = [
    tools.schema("calculator", "expression", "arithmetic"),
    tools.schema("search", "query", "words to look for"),
]
TOOLS = {"calculator": tools.calculate, "search": lambda query: f"found {query}"}


def asked(name: str, **arguments) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("37 * 48", 1776),
        ("-(2 + 3) ** 2", -25),
        ("7 // 2 + 7 % 2", 4),
        ("1 / 8", 0.125),
        (" 2 ** -1 ", 0.5),
        ("-" * 99 + "1", -1),
    ],
)
def test_arithmetic_is_pythons(expression, value):
    assert tools.calculate(expression) == value == eval(expression)


HOSTILE = [
    "__import__('os').system('true')",
    "().__class__",
    "open('x')",
    "9 ** 9 ** 9",
    "10 ** 16",
    "2 ** 1e9",
    "'a' * 9",
]
HOSTILE += [
    "(-8) ** 0.5",
    "1e308 * 10",
    "1 / 0",
    "0 ** -1",
    "[1] * 9",
    "lambda: 1",
    "True + 1",
    "a",
    "",
    "1 +",
    "1; 2",
    "x := 1",
]
HOSTILE += [
    "(" * 90 + "1" + ")" * 9,
    "-" * 200 + "1",
    "9" * 90,
    "1 " * 200,
    "\x00",
    "1 if 1 else 2",
    "f'{1}'",
    "(1e15) ** (1e15)",
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_hostile_expressions_are_refused_with_a_sentence(expression):
    with pytest.raises(tools.ToolError, match=r"\.$"):
        tools.calculate(expression)
    assert tools.call(asked("calculator", expression=expression), TOOLS, SCHEMAS).startswith("error: ")


def test_a_call_runs_and_anything_else_is_an_error():
    assert tools.call(asked("calculator", expression="6 * 7"), TOOLS, SCHEMAS) == "42"
    assert tools.call(asked("search", query="Lena"), TOOLS, SCHEMAS) == "found Lena"
    wrong = ["", "null", "[]", "3", '{"name": []}', '{"name": "search", "arguments": []}', asked("exec", code="1")]
    wrong += [asked("search"), asked("search", query=3), asked("search", query="a", more="b"), "[" * 100_000]
    for text in wrong:
        assert tools.call(text, TOOLS, SCHEMAS).startswith("error: "), text[:40]


def test_the_pattern_admits_the_calls_of_the_schemas_only():
    pattern = regex.compile(tools.pattern(SCHEMAS))
    assert pattern.fullmatch(asked("calculator", expression="1 + 1")) and pattern.fullmatch(asked("search", query="x"))
    assert pattern.fullmatch('{"name": "calc', partial=True)
    for text in (
        asked("exec", query="x"),
        asked("search", expression="1"),
        asked("search", query='a"b'),
        '{"name": "search", "arguments": {"query": "a"b"}}',
        asked("search", query=""),
    ):
        assert not pattern.fullmatch(text)
