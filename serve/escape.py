"""A request in which no text of the client's can become a control token, whatever a chat template prints of it."""

import json
from typing import Any

from sdpo_ray.chat import ControlTokens, call_arguments

_PRINTED = frozenset({"messages", "tools", "documents", "chat_template_kwargs", "reasoning_effort"})
"""What of a request reaches the chat template."""


def escape(request: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """The request with control strings broken in everything of it that a chat template may print; takes `request` over.

    Arguments of a tool call are JSON within JSON and are escaped as what they say: "\\u003c" is "<" to a template.
    Raises RecursionError for what is nested too deeply.
    """
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else []:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(control.escape_json(call_arguments(function["arguments"])))
    return {name: control.escape_json(value) if name in _PRINTED else value for name, value in request.items()}


def escape_completion(request: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """A completion's request with control strings broken in its text, as in a chat; takes `request` over.

    Whoever wants control tokens in a prompt sends token ids, which are left alone. With `echo` the prompt comes back
    as it was read. Raises RecursionError for what is nested too deeply.
    """
    return {
        name: control.escape_json(value) if name in ("prompt", "suffix") else value for name, value in request.items()
    }
