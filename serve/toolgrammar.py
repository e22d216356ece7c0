"""Calls of tools that an answer must hold, as a grammar for llguidance.

vLLM describes them with xgrammar's structural tags, in the words that its parser of the policy's calls reads; the
engine compiles with llguidance, whose bounds hold (`serve.arguments`). Lark grammars:
https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_ray.errors import DataError

_AS_TEMPLATES_PRINT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `tojson` does in chat templates: what the policy has read of calls. White space without end is none of it."""


def constraint_of(structural_tag: str) -> dict[str, Any]:
    """The field of vLLM's `StructuredOutputsParams` that holds the same constraint. Raises DataError.

    Calls that may be made between plain text, which `strict` tools bind, keep vLLM's older kind of structural tag.
    """
    wanted = json.loads(structural_tag)["format"]
    if wanted["type"] != "triggered_tags":
        return {"grammar": _Lark().grammar(wanted)}
    tags = [{"begin": tag["begin"], "schema": _schema(tag["content"]), "end": tag["end"]} for tag in wanted["tags"]]
    return {"structural_tag": json.dumps({"structures": tags, "triggers": wanted["triggers"]})}


class _Lark:
    """Writes the rules of one grammar."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        """Names by what they stand for."""

    def grammar(self, wanted: Mapping[str, Any]) -> str:
        start = self._expression(wanted)
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for body, name in self._rules.items()), ""])

    def _expression(self, wanted: Mapping[str, Any]) -> str:
        match wanted["type"]:
            case "const_string":
                return json.dumps(wanted["value"])
            case "json_schema":
                return self._rule(f"%json {json.dumps(_schema(wanted))}")
            case "tag":
                begin, end = json.dumps(wanted["begin"]), json.dumps(wanted["end"])
                return self._rule(f"{begin} {self._expression(wanted['content'])} {end}")
            case "sequence":
                return self._rule(" ".join(map(self._expression, wanted["elements"])))
            case "or":
                return self._any_of(wanted["elements"])
            case "tags_with_separator":
                one = self._any_of(wanted["tags"])
                more = "" if wanted["stop_after_first"] else f" ({json.dumps(wanted['separator'])} {one})*"
                return self._rule(one + more if wanted["at_least_one"] else f"({one}{more})?")
            case other:
                raise DataError(f"calls in this policy's format cannot be forced: it takes {other}")

    def _any_of(self, wanted: Sequence[Mapping[str, Any]]) -> str:
        return self._rule(" | ".join(map(self._expression, wanted)))

    def _rule(self, body: str) -> str:
        return self._rules.setdefault(body, f"rule_{len(self._rules)}")


def _schema(content: Mapping[str, Any]) -> dict[str, Any]:
    if content["type"] != "json_schema" or content.get("style", "json") != "json":
        raise DataError("calls in this policy's format cannot be forced: their arguments are not JSON")
    schema = content["json_schema"]
    # Where a tool is not strict, vLLM asks for any JSON; arguments are an object all the same.
    return {**(schema if isinstance(schema, dict) else {"type": "object"}), "x-guidance": _AS_TEMPLATES_PRINT}
