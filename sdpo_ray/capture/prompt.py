"""Read the prompt of a chat request, as vLLM reads it: messages, tools, and arguments of the chat template.

The recorded prompt has to render to the token ids that were served; otherwise the learner refuses the turn.
"""

import json
from collections.abc import Mapping
from typing import Any

from sdpo_ray.errors import DataError
from sdpo_ray.records import Message, Role, ToolCall


def text_messages(messages: object) -> tuple[Message, ...]:
    """The messages of a text chat that ends with a user's or a tool's message; empty for anything else."""
    if not isinstance(messages, list) or not messages:
        return ()
    try:
        read = tuple(_message(message) for message in messages)
    except (DataError, ValueError):
        return ()
    is_chat = read[-1].role in (Role.USER, Role.TOOL) and any(message.role is Role.USER for message in read)
    return read if is_chat else ()


def offered_tools(tools: object) -> str:
    """The offered tools as JSON, each as vLLM passes it to the template; empty if there are none.

    Only OpenAI's fields, in OpenAI's order; missing `description` and `parameters` are null.
    """
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return ""
    return json.dumps([_tool(tool) for tool in tools], ensure_ascii=False) if tools else ""


def template_arguments(body: Mapping[str, Any]) -> str:
    """Arguments of the chat template other than messages and tools, as JSON; empty if there are none.

    Sorted by name; the values keep their inner order, since a template may print them.
    """
    stated = body.get("chat_template_kwargs")
    arguments = dict(stated) if isinstance(stated, dict) else {}
    effort = body.get("reasoning_effort")
    if effort is not None and "enable_thinking" not in arguments:
        arguments["enable_thinking"] = effort != "none"
    for name in ("documents", "reasoning_effort"):
        if body.get(name) is not None:
            arguments[name] = body[name]
    return json.dumps(dict(sorted(arguments.items())), ensure_ascii=False) if arguments else ""


def _message(message: object) -> Message:
    if not isinstance(message, dict):
        raise DataError("not a text message")
    role = Role(str(message.get("role")))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and role is not Role.ASSISTANT):
        raise DataError("only an assistant calls tools")
    content = message.get("content")
    return Message(
        role=role,
        content="" if content is None and calls else _text(content),
        tool_calls=tuple(_tool_call(call) for call in calls),
        tool_call_id=str(message.get("tool_call_id") or "") if role is Role.TOOL else "",
    )


def _text(content: object) -> str:
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if any(not isinstance(part, str) for part in parts):
            raise DataError("not a text message")
        return "\n".join(str(part) for part in parts if part)
    if not isinstance(content, str):
        raise DataError("not a text message")
    return content


def _tool_call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) and call.get("type", "function") == "function" else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError("not a call of a function")
    arguments = function.get("arguments")
    return ToolCall(
        call_id=str(call.get("id") or ""),
        name=function["name"],
        arguments=arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False),
    )


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    stated = function if isinstance(function, dict) else {}
    fields = {name: stated.get(name) for name in ("name", "description", "parameters")}
    strict = {"strict": stated["strict"]} if stated.get("strict") is not None else {}
    return {"type": tool.get("type", "function"), "function": fields | strict}
