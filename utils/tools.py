"""Tools that a language model may call: it writes JSON, we check it, run the tool and hand the result back.

What a model writes is data. Nothing of it is evaluated as code: `calculate` walks the syntax tree and knows numbers and seven
operators; everything else, and everything too large, is refused with a sentence.
"""

import ast
import json
import math
import operator
import re
from collections.abc import Callable

LONGEST, LARGEST = 100, 1e15  # characters of an expression; size of any number in it
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}
OPERATORS |= {ast.USub: operator.neg, ast.UAdd: operator.pos}


class ToolError(ValueError):
    """A call that is refused; the message says why and goes back to the model."""


def calculate(expression: str) -> float:
    """The value of an arithmetic expression. Raises ToolError for anything else, and for numbers beyond LARGEST."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression is longer than {LONGEST} characters.")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, ToolError):
            raise
        raise ToolError(f"{expression!r} can not be computed: {error}.") from None


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result = value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            result = OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(b) * math.log10(max(2, abs(a))) > math.log10(LARGEST):
                raise ToolError(f"{a} to the power {b} is too large.")  # before it is computed
            result = OPERATORS[type(op)](a, b)
        case _:
            raise ToolError(f"{type(node).__name__} is no arithmetic.")
    if isinstance(result, complex) or not abs(result) <= LARGEST:
        raise ToolError(f"numbers up to {LARGEST:g} are allowed.")
    return result


def schema(name: str, argument: str, description: str) -> dict:
    """The JSON schema of a tool with one text argument, as chat models are told about it."""
    properties = {argument: {"type": "string", "description": description}}
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": [argument]}}


def pattern(schemas: list[dict]) -> str:
    """A regular expression that exactly the calls allowed by these schemas match: for constrained decoding."""
    calls = []
    for tool in schemas:
        arguments = ", ".join(rf'"{re.escape(name)}": "[^"\\\n]{{1,40}}"' for name in tool["parameters"]["required"])
        calls.append(rf'\{{"name": "{re.escape(tool["name"])}", "arguments": \{{{arguments}\}}\}}')
    return "|".join(calls)


def call(text: str, tools: dict[str, Callable[[str], object]], schemas: list[dict]) -> str:
    """Run the call that a model wrote as JSON; whatever is wrong comes back as a sentence, never as an exception."""
    try:
        wanted = json.loads(text)
        needed = next(s["parameters"]["required"] for s in schemas if s["name"] == wanted["name"])
        arguments = wanted["arguments"]
        if sorted(arguments) != sorted(needed) or not all(isinstance(value, str) for value in arguments.values()):
            raise ToolError(f"{wanted['name']} takes the text {', '.join(needed)}.")
        return str(tools[wanted["name"]](*(arguments[name] for name in needed)))
    except ToolError as error:
        return f"error: {error}"
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        return f"error: this is no call of {', '.join(tools)}."
