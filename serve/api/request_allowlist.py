"""Allow-list of request parameters. Any other is refused: vLLM accepts sixty and adds more with each version.

Left out on purpose: parameters that run or read something for the client (`chat_template`, media by URL,
`kv_transfer_params`), that overtake other requests (`priority`, beam search), that change the prompt which a turn
records as served (`truncate_prompt_tokens`, `continue_final_message`), and grammars, whose size is unbounded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_ray.errors import DataError
from serve.api.schema_limits import check_constraint, check_forced_tools, check_response_format

MAX_DEPTH = 64
"""Nesting of lists and objects; vLLM's own limit for schemas."""
MAX_CHOICES = 128
"""Choices of one request, over all its prompts; OpenAI's own limit for `n`."""
MAX_ENTRIES = 1024
"""Entries of a list of tokens, which the engine iterates over for every batch."""

_SHARED = {
    *("model", "user", "stream", "stream_options", "n", "max_tokens", "stop", "seed", "logprobs", "logit_bias"),
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "response_format"),
    # vLLM's own, without effect on other requests.
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "allowed_token_ids"),
    *("bad_words", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
    *("structured_outputs", "return_token_ids", "return_tokens_as_token_ids", "cache_salt", "add_special_tokens"),
}
_CHAT = _SHARED | {
    *("messages", "metadata", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
    *("reasoning_effort", "include_reasoning", "documents", "chat_template_kwargs"),
    # Of OpenAI's own service; they have no effect here.
    *("store", "service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "prediction", "verbosity", "moderation", "modalities"),
}
_COMPLETION = _SHARED | {"prompt", "suffix", "echo", "best_of"}
_RESERVED_KWARGS = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "tokenizer", "tokenizer_kwargs", "model_config", "self", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
}
"""Arguments of vLLM's and transformers' functions around the template, which are not the template's own."""
_TEXT_PARTS = ("text", "refusal")


def check_chat(request: Mapping[str, Any]) -> None:
    """Raise DataError, naming the parameter, unless every part of this chat request is allowed."""
    _check(request, _CHAT)
    if request.get("modalities") not in (None, ["text"]):
        raise DataError("modalities: this policy answers in text")
    _check_messages(request.get("messages"))
    kwargs = request.get("chat_template_kwargs")
    if isinstance(kwargs, Mapping) and (reserved := _RESERVED_KWARGS & kwargs.keys()):
        raise DataError(f"chat_template_kwargs: {min(reserved)} is not an argument of the template")
    check_forced_tools(request)


def check_completion(request: Mapping[str, Any]) -> None:
    """Raise DataError, naming the parameter, unless every part of this completion request is allowed."""
    _check(request, _COMPLETION)
    if request.get("best_of") not in (None, 1):
        raise DataError("best_of: ask for n answers and choose among them")
    prompt = request.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(each, int) for each in prompt):
        choices = len(prompt) * (request.get("n") or 1)
        if choices > MAX_CHOICES:
            raise DataError(f"prompt: {choices} answers are asked for, of at most {MAX_CHOICES} in one request")


def _check(request: Mapping[str, Any], known: set[str]) -> None:
    _check_values(request)
    for name, value in request.items():
        if value is not None and name not in known:
            raise DataError(f"{name}: this parameter is not taken here")
    choices = request.get("n")
    if choices is not None and (type(choices) is not int or not 1 <= choices <= MAX_CHOICES):
        raise DataError(f"n: must be a whole number of 1 to {MAX_CHOICES}")
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        entries = request.get(name)
        if isinstance(entries, list | dict) and len(entries) > MAX_ENTRIES:
            raise DataError(f"{name}: has {len(entries)} entries, of at most {MAX_ENTRIES}")
    check_constraint(request.get("structured_outputs"))
    check_response_format(request.get("response_format"))


def _check_values(request: Mapping[str, Any]) -> None:
    """Raise DataError for valid JSON that breaks the engine: half surrogates, huge numbers, deep nesting."""
    level: Sequence[Any] = [request]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            else:
                _check_scalar(value)
        if not below:
            return
        level = below
    raise DataError(f"the body is nested too deeply: lists and objects go {MAX_DEPTH} deep at most")


def _check_scalar(value: object) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError("the body holds half of a surrogate pair, which no UTF-8 text can hold") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError("the body holds a number that is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise DataError("the body holds a whole number that does not fit into 64 bits")


def _check_messages(messages: object) -> None:
    """Raise DataError for parts other than text: for an image, the server would fetch any URL of the client's."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _TEXT_PARTS:
                raise DataError(f"messages: a part of a message is text here, not {kind}")
