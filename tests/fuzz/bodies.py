"""Strategies for request bodies: valid ones, and the same with any part replaced by arbitrary JSON."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<|im_<|im_end|>start|>")
wild_text = st.one_of(
    st.text(max_size=20),
    # Lone surrogates, which JSON can express.
    st.text(st.characters(), max_size=5),
    st.lists(st.sampled_from([*CONTROL, "\n", "system\n", "\x00", "\u200b", "{{ 7 * 7 }}", "é"]), max_size=5).map(
        "".join
    ),
)
text = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.one_of(st.integers(0, 5), st.integers(), st.integers(-(10**40), 10**40), st.integers(-2, 5), st.floats())
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, wild_text),
    lambda within: st.lists(within, max_size=4) | st.dictionaries(wild_text, within, max_size=4),
    max_leaves=12,
)
deep = st.integers(1, 200).map(lambda depth: _nested(depth))

patterns = st.one_of(
    st.text("ab(|)[]{}0123456789,.*+?^$\\w", max_size=24),
    st.sampled_from(
        [".?" * 100, "((a{100}){100}){100}", "(a|b){0,10000}", "(a+)+b", "(" * 300, "(?=a)b", "[a-z]?" * 400, ""]
    ),
)
_leaf_schemas = st.one_of(
    st.sampled_from(
        [{}, True, False, {"type": "null"}, {"type": "banana"}, {"enum": []}, {"$ref": "#"}, {"$ref": "#/x"}]
    ),
    st.fixed_dictionaries({"type": st.just("string")}, optional={"pattern": patterns, "maxLength": numbers}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={"minimum": numbers, "maximum": numbers, "multipleOf": numbers},
    ),
    st.fixed_dictionaries({"enum": st.lists(anything, max_size=3)}),
    st.fixed_dictionaries(
        {"type": st.just("string"), "format": st.sampled_from(["email", "uuid", "date-time", "ipv6", "banana"])}
    ),
)
schemas = st.recursive(
    _leaf_schemas,
    lambda within: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(wild_text, within, max_size=3)},
            optional={
                "required": st.lists(wild_text, max_size=2),
                "additionalProperties": within | st.booleans(),
                "patternProperties": st.dictionaries(patterns, within, max_size=2),
                "minProperties": numbers,
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": within},
            optional={"minItems": numbers, "maxItems": numbers, "uniqueItems": st.booleans()},
        ),
        st.dictionaries(
            st.sampled_from(["anyOf", "allOf", "oneOf"]),
            st.lists(within, min_size=1, max_size=3),
            min_size=1,
            max_size=2,
        ),
    ),
    max_leaves=8,
)


def mostly(usual: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """The given strategy, and sometimes arbitrary JSON."""
    return st.integers(0, 24).flatmap(lambda n: usual if n else anything)


names = st.one_of(st.sampled_from(["f", "get_weather"]), wild_text)
calls = st.fixed_dictionaries(
    {
        "id": mostly(names),
        "type": mostly(st.just("function")),
        "function": mostly(
            st.fixed_dictionaries(
                {
                    "name": mostly(names),
                    "arguments": mostly(st.sampled_from(['{"a": 1}', "{", "[]", '{"\\ud800": NaN}'])),
                }
            )
        ),
    }
)
_texts = st.fixed_dictionaries({"type": mostly(st.just("text")), "text": mostly(text)})
parts = (
    _texts
    | _texts
    | st.sampled_from(
        [
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/cat.png"}},
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"type": "refusal", "refusal": "No."},
        ]
    )
)
messages = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["user", "assistant", "system", "tool", "developer"])),
        "content": mostly(text | text | wild_text | st.lists(mostly(parts), max_size=3)),
    },
    optional={
        "name": mostly(names),
        "tool_calls": mostly(st.lists(mostly(calls), max_size=2)),
        "tool_call_id": mostly(names),
        "reasoning_content": anything,
    },
)
tools = st.fixed_dictionaries(
    {
        "type": mostly(st.just("function")),
        "function": mostly(
            st.fixed_dictionaries(
                {"name": mostly(names)},
                optional={
                    "description": mostly(wild_text),
                    "parameters": mostly(schemas),
                    "strict": mostly(st.booleans()),
                },
            )
        ),
    }
)
formats = st.one_of(
    st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "structural_tag", "format": {}}]),
    schemas.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}),
)
constraints = st.one_of(
    patterns.map(lambda pattern: {"regex": pattern}),
    schemas.map(lambda schema: {"json": schema}),
    st.lists(wild_text, max_size=3).map(lambda words: {"choice": words}),
    st.sampled_from([{"grammar": "root ::= root"}, {"json_object": False}, {"structural_tag": "{}"}, {}]),
)
token_ids = st.integers(0, 1399) | st.integers(0, 1399) | st.integers(-1, 2000)
SAMPLING: Mapping[str, SearchStrategy[Any]] = {
    "n": st.integers(1, 4) | st.sampled_from([-1, 0, 128, 129, 10_000]),
    "temperature": st.floats(0, 2) | st.floats(-1, 3),
    "top_p": st.floats(0.1, 1) | st.floats(-0.5, 1.5),
    "top_k": numbers,
    "min_p": st.floats(0, 1) | st.floats(-0.5, 1.5),
    "seed": numbers,
    "presence_penalty": st.floats(-2, 2) | st.floats(-3, 3),
    "repetition_penalty": numbers,
    "stop": wild_text | st.lists(wild_text, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "min_tokens": st.integers(-1, 10),
    "ignore_eos": st.booleans(),
    "logit_bias": st.dictionaries(token_ids.map(str) | wild_text, numbers, max_size=3),
    "allowed_token_ids": st.lists(token_ids, max_size=4),
    "stop_token_ids": st.lists(token_ids, max_size=4),
    "bad_words": st.lists(wild_text, max_size=3),
    "response_format": formats,
    "structured_outputs": constraints,
    "return_token_ids": st.booleans(),
    "cache_salt": wild_text,
    "user": wild_text,
}
FORBIDDEN: Mapping[str, SearchStrategy[Any]] = {
    "chat_template": wild_text,
    "truncate_prompt_tokens": numbers,
    "priority": numbers,
    "kv_transfer_params": anything,
    "vllm_xargs": anything,
    "prompt_logprobs": numbers,
    "repetition_detection": st.fixed_dictionaries({"max_pattern_size": numbers, "min_count": numbers}),
    "mm_processor_kwargs": anything,
    "use_beam_search": st.booleans(),
    "prompt_embeds": wild_text,
}


def _nested(depth: int) -> Any:
    value: Any = {}
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


def _some(fields: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[dict[str, Any]]:
    """A dict with up to four of the fields."""
    return st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: mostly(fields[name]) for name in chosen})
    )


def _body(
    needed: Mapping[str, SearchStrategy[Any]], optional: Mapping[str, SearchStrategy[Any]]
) -> SearchStrategy[dict[str, Any]]:
    forbidden = st.one_of(st.just({}), st.just({}), st.just({}), st.just({}), _some(FORBIDDEN))
    return st.tuples(st.fixed_dictionaries(dict(needed)), _some(optional), forbidden).map(
        lambda three: three[0] | three[1] | three[2]
    )


_ALWAYS = {"model": mostly(st.just("policy")), "max_tokens": mostly(st.integers(1, 8))}
chats = _body(
    _ALWAYS | {"messages": mostly(st.lists(mostly(messages), min_size=1, max_size=3))},
    {
        **SAMPLING,
        "logprobs": st.booleans(),
        "top_logprobs": numbers,
        "tools": st.lists(mostly(tools), min_size=1, max_size=3),
        "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
        "parallel_tool_calls": st.booleans(),
        "metadata": st.dictionaries(wild_text, wild_text, max_size=2) | deep,
        "documents": st.lists(st.dictionaries(wild_text, wild_text, max_size=2), max_size=2),
        "chat_template_kwargs": st.dictionaries(
            names | st.sampled_from(["messages", "tokenize"]), anything, max_size=2
        ),
        "reasoning_effort": st.sampled_from(["low", "none", "banana"]),
    },
)
completions = _body(
    _ALWAYS
    | {
        "prompt": mostly(
            st.one_of(
                wild_text,
                st.lists(wild_text, max_size=3),
                st.lists(token_ids, max_size=6),
                st.lists(st.lists(st.integers(0, 1399), max_size=4), max_size=3),
            )
        )
    },
    {**SAMPLING, "echo": st.booleans(), "logprobs": numbers, "suffix": wild_text, "best_of": numbers},
)
