"""Escapes requests so that no text of a client becomes a control token, whatever a chat template prints of it."""

import json
from typing import Any

from sdpo_ray.chat import ControlTokens, call_arguments

_PRINTED = frozenset({"messages", "tools", "documents", "chat_template_kwargs", "reasoning_effort"})
"""Fields of a request that reach the chat template."""


def escape(request: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """Return the request with control strings broken in every field that a chat template may print; modifies `request`.

    Arguments of a tool call are JSON within JSON and are escaped in decoded form: "\\u003c" is "<" to a template.
    Text parts become the one text that vLLM makes of them: a template that prints them side by side would put halves
    of a control string together. Raises RecursionError for a request that is nested too deeply.
    """
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            continue
        if (text := _joined(message.get("content"))) is not None:
            message["content"] = text
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(control.escape_json(call_arguments(function["arguments"])))
    return {name: control.escape_json(value) if name in _PRINTED else value for name, value in request.items()}


def escape_completion(request: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """Return a completion request with control strings broken in its text.

    A client that wants control tokens in a prompt sends token ids, which stay as they are. With `echo` the prompt comes
    back as it was escaped. Raises RecursionError for a request that is nested too deeply.
    """
    return {
        name: control.escape_json(value) if name in ("prompt", "suffix") else value for name, value in request.items()
    }


def _joined(content: object) -> str | None:
    """Return the text of a list of text parts; None for anything else."""
    if not isinstance(content, list) or not content:
        return None
    texts = [part.get(str(part.get("type"))) if isinstance(part, dict) else None for part in content]
    return "\n".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None
