"""Tool calls in a response, as vLLM's own parser shows them to the client."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.tool_calls_utils import maybe_filter_parallel_tool_calls
from vllm.parser import ParserManager

from sdpo_ray.errors import DataError
from sdpo_ray.records import ToolCall


class ToolCallReader:
    """Parses whole responses with the parser of vLLM's chat endpoint. `parser` is `serve.tool_parser`."""

    def __init__(self, parser: str, tokenizer: Any, model_config: Any) -> None:
        self._auto = parser != "none"
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._parser = ParserManager.get_parser(
            tool_parser_name=parser if self._auto else None,
            enable_auto_tools=self._auto,
            model_name=model_config.model,
            tokenizer=tokenizer,
        )

    def calls(self, tool_use: Mapping[str, Any], text: str, ids: Sequence[int]) -> tuple[ToolCall, ...]:
        """Return the calls that a client who sent the fields `tool_use` is shown for this response. Raises DataError.

        Their ids are empty: vLLM draws them when it writes the reply, which is after the turn is stored. A stream
        shows the arguments as the policy wrote them, where this is the same JSON with vLLM's white space.
        """
        if self._parser is None:
            return ()
        request = ChatCompletionRequest.model_validate({**tool_use, "messages": [{"role": "user", "content": ""}]})
        parser = self._parser(self._tokenizer, request.tools, model_config=self._model_config)
        try:
            _, _, found = parser.parse(text, request, enable_auto_tools=self._auto, model_output_token_ids=list(ids))
        except Exception as error:
            # vLLM has forty parsers, and what each of them raises for malformed text is not specified.
            raise DataError(f"the tool parser failed with {type(error).__name__}") from error
        shown = maybe_filter_parallel_tool_calls(list(found or ()), request)
        return tuple(ToolCall(call_id="", name=call.name, arguments=call.arguments) for call in shown)
