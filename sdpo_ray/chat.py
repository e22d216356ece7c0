"""Chat messages to token ids, with the policy's own template.

User text never becomes a control token: every control string in a message is broken by a zero-width
space before the template sees it. `serve` and `distill` call the same function, so the prompt that was
served and the contexts that are learned from are rendered alike.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdpo_ray.records import Message

FINGERPRINT_TEXT = (
    "What is the capital of France? The capital of France is Paris. Shorter please. "
    "The quick brown fox jumps over the lazy dog; 3 + 4 = 7, and water is wet."
)
"""The fixed text of every `records.Fingerprint`."""

_BREAK = "\u200b"


class ControlTokens:
    """The strings that a tokenizer would turn into control tokens."""

    def __init__(self, tokens: Iterable[str]) -> None:
        strings = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, strings))) if strings else None

    def escape(self, text: str) -> str:
        """Return `text` with each control string broken after its first character; else unchanged."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)


class ChatFormat:
    """The tokenizer and template of one policy directory."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        added = self._tokenizer.added_tokens_decoder.values()
        self.control = ControlTokens(str(token.content) for token in added)
        self.eos_id: int = self._tokenizer.eos_token_id

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of the prompt that asks for the next assistant message."""
        chat = [{"role": m.role.value, "content": self.control.escape(m.content)} for m in messages]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self.text_ids(text)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of `text` as it stands, control strings included, nothing added."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
