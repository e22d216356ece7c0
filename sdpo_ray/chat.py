"""Chat messages to token ids, with the policy's own chat template.

User text never becomes a control token: every control string in a message is broken by a zero-width space before the
template renders it. `serve` and `distill` call the same function, so the served prompt and the training contexts are
rendered alike.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdpo_ray.errors import DataError
from sdpo_ray.records import Message

FINGERPRINT_TEXT = (
    "What is the capital of France? The capital of France is Paris. Shorter please. "
    "The quick brown fox jumps over the lazy dog; 3 + 4 = 7, and water is wet."
)
"""The fixed text of every `records.Fingerprint`."""

HINDSIGHT_BLOCKS = {
    "online": (
        "\n\n=== HINDSIGHT CONTEXT ===\n"
        "[The following is a future user message. Use this to guide your answer to the user prompt.]\n"
    ),
    "offline_code": (
        "\n\n[HINDSIGHT CONTEXT]\n"
        "The following is a user response to your previous, insufficient attempt. "
        "Improve your response to the user prompt.\n"
        "Future User Message: "
    ),
    "paper": "\nThe following is a future user message. Use this to guide your answer to the user prompt: ",
}
"""Text between a user's message and the follow-up in the context (x, o), by name of the template. Sources: Table 1 of
arXiv 2603.12273, `online_sdpo_trainer.py` and `offline_sdpo_trainer.py` of lasgroup/user_interactions."""

_BREAK = "\u200b"
_FIXED: dict[str, Any] = {
    "chat_template": None,
    "tokenize": False,
    "return_dict": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
}
"""Template arguments that a client cannot set; vLLM also overrides or refuses them."""


class ControlTokens:
    """The strings that a tokenizer encodes as control tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        strings = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, strings))) if strings else None

    def escape(self, text: str) -> str:
        """`text` with each control string broken by a zero-width space after its first character."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)

    def escape_json(self, value: Any) -> Any:
        """A copy of a JSON value with `escape` applied to all its strings and keys."""
        if isinstance(value, str):
            return self.escape(value)
        if isinstance(value, list):
            return [self.escape_json(each) for each in value]
        if isinstance(value, dict):
            return {self.escape(key): self.escape_json(each) for key, each in value.items()}
        return value


def call_arguments(text: str) -> dict[str, Any]:
    """The arguments of a tool call as an object for templates; empty where `text` is no JSON object, as in vLLM."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


class ChatFormat:
    """The tokenizer and template of one policy directory."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        added = self._tokenizer.added_tokens_decoder.values()
        self.control = ControlTokens(str(token.content) for token in added)
        self.eos_id: int = self._tokenizer.eos_token_id

    def prompt_ids(self, messages: Sequence[Message], *, tools: str = "", template_kwargs: str = "") -> tuple[int, ...]:
        """Token ids of the prompt for the next assistant message.

        `tools` and `template_kwargs` are JSON as on a `Turn`; empty means none. Raises DataError where the template or
        the tokenizer fails on them.
        """
        from jinja2 import TemplateError

        try:
            arguments = self.control.escape_json(json.loads(template_kwargs)) if template_kwargs else {}
            escaped_tools = self.control.escape_json(json.loads(tools)) if tools else None
            chat = [self._template_message(message) for message in messages]
            text = self._tokenizer.apply_chat_template(**arguments | _FIXED, conversation=chat, tools=escaped_tools)
            return self.text_ids(text)
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"no prompt for these messages: {error}") from error

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` unchanged: control strings become control tokens, and nothing is added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end in characters of each token of `text_ids(text)`; tokens that share a character all span it."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, with control tokens as they are written."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _template_message(self, message: Message) -> dict[str, Any]:
        """A message as templates read it: tool call arguments as an object, all text escaped."""
        chat: dict[str, Any] = {"role": message.role.value, "content": message.content}
        if message.tool_calls:
            chat["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call_arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            chat["tool_call_id"] = message.tool_call_id
        rendered: dict[str, Any] = self.control.escape_json(chat)
        return rendered
