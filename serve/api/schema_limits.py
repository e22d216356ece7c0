"""Limits on schemas and patterns of structured outputs: compiling for minutes blocks the whole engine.

The engine's compiler (llguidance) has its own limits on everything but repetitions, which it expands, and schemas that
hold at once, whose patterns it intersects. OpenAI's structured outputs have no `allOf` either.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sdpo_ray.errors import DataError

MAX_BYTES = 64 << 10
"""Size of one schema, as JSON."""
MAX_COUNT = 10_000
"""Largest sum of the items and properties that a schema requires, and product of one pattern's repetitions."""
MAX_PATTERN = 1024
"""Length of a pattern, in characters."""

_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")
MAX_PATTERNS = 16
"""Number of `patternProperties` in one object; the compiler compares each with every other."""
_BESIDE = {
    *("type", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "nullable"),
    *("discriminator", "$defs", "definitions", "$schema", "$id", "$comment"),
}
"""Keys that may stand beside `anyOf`, `oneOf`, `allOf` or `$ref` without being a schema that holds at the same time."""
_CONSTRAINTS = ("json", "json_object", "regex", "choice")
_BRACES = re.compile(r"\{([^{}]*)\}")


def check_constraint(constraint: object) -> None:
    """Raise DataError unless vLLM's `structured_outputs` are within the limits."""
    if constraint is None:
        return
    if not isinstance(constraint, Mapping):
        raise DataError("structured_outputs: must be an object")
    for name, value in constraint.items():
        if value is not None and name not in _CONSTRAINTS:
            raise DataError(f"structured_outputs: takes {', '.join(_CONSTRAINTS)}, not {name}")
    _check_size("structured_outputs", constraint)
    if isinstance(regex := constraint.get("regex"), str):
        _check_pattern(regex)
    schema = constraint.get("json")
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise DataError(f"structured_outputs: json is not JSON: {error}") from None
    if schema is not None:
        check_schema("structured_outputs", schema)


def check_response_format(wanted: object) -> None:
    """Raise DataError unless OpenAI's `response_format` is within the limits."""
    if not isinstance(wanted, Mapping):
        return
    if wanted.get("type") not in ("text", "json_object", "json_schema"):
        raise DataError("response_format: type is text, json_object or json_schema")
    given = wanted.get("json_schema")
    if isinstance(given, Mapping) and given.get("schema") is not None:
        check_schema("response_format", given["schema"])


def check_forced_tools(request: Mapping[str, Any]) -> None:
    """Raise DataError unless the tools that a chat must call are within the limits; others are only shown."""
    tools = request.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    declared = [function for function in functions if isinstance(function, Mapping)]
    choice = request.get("tool_choice")
    if choice not in (None, "auto", "none"):
        schemas = [function["parameters"] for function in declared if function.get("parameters") is not None]
        check_schema("tools", schemas)
    constrained = request.get("response_format") is not None or request.get("structured_outputs") is not None
    if constrained and choice != "none" and any(function.get("strict") for function in declared):
        raise DataError("tools: strict ones and a format of the answer cannot both hold; leave one out")


def check_schema(where: str, schema: object) -> None:
    """Raise DataError, naming `where`, for a schema that might compile for long."""
    _check_size(where, schema)
    counted = 0.0
    for node in _nodes(schema):
        counted += sum(count for name in _COUNTS if isinstance(count := node.get(name), int | float) and count > 0)
        if counted > MAX_COUNT:
            raise DataError(f"{where}: asks for more than {MAX_COUNT} items or properties")
        others = [name for name in ("anyOf", "oneOf", "allOf") if isinstance(node.get(name), list)]
        others += ["$ref"] if isinstance(node.get("$ref"), str) else []
        if "allOf" in others and len(node["allOf"]) > 1:
            raise DataError(f"{where}: allOf of several schemas is not taken here: write one")
        if others and (beside := node.keys() - _BESIDE - set(others[:1])):
            raise DataError(f"{where}: {min(beside)} beside {others[0]} is not taken here")
        if "x-guidance" in node:
            raise DataError(f"{where}: x-guidance is not taken here")
        if isinstance(pattern := node.get("pattern"), str):
            _check_pattern(pattern)
        if isinstance(patterns := node.get("patternProperties"), Mapping):
            if len(patterns) > MAX_PATTERNS:
                raise DataError(f"{where}: {len(patterns)} patternProperties, of at most {MAX_PATTERNS}")
            for pattern in patterns:
                _check_pattern(pattern)


def _nodes(schema: object) -> Iterator[Mapping[str, Any]]:
    """Yield every object in it, whether it is a schema or not."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_size(where: str, value: object) -> None:
    try:
        size = len(json.dumps(value))
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply") from error
    if size > MAX_BYTES:
        raise DataError(f"{where}: {size} bytes, of at most {MAX_BYTES}")


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise DataError(f"a pattern has {len(pattern)} characters, of at most {MAX_PATTERN}")
    product = 1
    for braces in _BRACES.findall(pattern):
        # Leading zeros do not count, and eight digits are above the limit in any case.
        counts = [int(count.lstrip("0")[:8] or 0) for count in re.findall(r"[0-9]+", braces)]
        product *= max([1, *counts])
        if product > MAX_COUNT:
            raise DataError(f"a pattern repeats its parts more than {MAX_COUNT} times")
