"""Prompts that are cut to fit, and examples that are too long.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.chat import ChatFormat
from sdpo_ray.distill.data.example import Example
from sdpo_ray.records import Message, Role
from tests.support.builders import dialogue, interaction, tool_use
from tests.support.examples import ONLINE_BLOCK, read_examples, read_one, refusal_of

HISTORY = dialogue("one", "1", "two", "2", "three", "3", system="Count.")


def test_golden_16_the_last_five_messages_are_read_and_a_leading_answer_is_not(chat: ChatFormat) -> None:
    served = interaction(chat, prompt="four", history=HISTORY)
    for limit, kept in ((7, "one"), (6, "two"), (5, "two"), (4, "three"), (3, "three"), (2, "four"), (1, "four")):
        (found,), counts = read_examples(chat, served, max_messages=limit)
        text = chat.text(found.prompt_ids)
        assert text.startswith(f"<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n{kept}<|im_end|>")
        assert text.endswith("<|im_start|>user\nfour<|im_end|>\n<|im_start|>assistant\n")
        assert counts == ({} if kept == "one" else {"history_cut": 1})
        assert found.sampler_logprobs == (served.turn.response_logprobs if kept == "one" else ())


def _insertion(found: Example) -> int:
    """Index at which the two contexts differ; after the block the rest of x must follow."""
    both = zip(found.prompt_ids, found.hindsight_ids, strict=False)
    at = next(place for place, (x, xo) in enumerate(both) if x != xo)
    assert found.hindsight_ids[at - len(found.prompt_ids) :] == found.prompt_ids[at:]
    return at


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text("ab \n", max_size=12), max_size=9),
    system=st.none() | st.just("Be kind."),
    max_messages=st.none() | st.integers(1, 10),
    max_prompt_tokens=st.none() | st.integers(16, 120),
    max_model_len=st.integers(150, 400),
)
def test_golden_16_both_contexts_have_the_same_messages_whatever_is_left_out(
    chat: ChatFormat,
    texts: list[str],
    system: str | None,
    max_messages: int,
    max_prompt_tokens: int,
    max_model_len: int,
) -> None:
    history = dialogue(*texts[: len(texts) // 2 * 2], system=system)
    served = interaction(chat, prompt="Q", history=history, follow_up="No!")
    limits = {"max_messages": max_messages, "max_prompt_tokens": max_prompt_tokens}
    found, counts = read_examples(chat, served, max_model_len=max_model_len, **limits)
    kept = history if system is None else history[1:]
    fitting = [
        start
        for start in range(0, len(kept) + 1, 2)
        if len(kept) - start + 1 <= (max_messages or 99)
        and (x := len(_asked(chat, system, *kept[start:]))) <= (max_prompt_tokens or 999)
        and x + len(chat.text_ids(ONLINE_BLOCK + "No!")) + len(served.turn.response_ids) <= max_model_len
    ]
    if not fitting:
        assert counts == {"too_long": 1}
        return
    (example,) = found
    assert example.prompt_ids == _asked(chat, system, *kept[fitting[0] :])
    at = _insertion(example)
    assert chat.text(example.prompt_ids[:at]).endswith("<|im_start|>user\nQ")
    assert counts == ({"history_cut": 1} if fitting[0] else {})


def _asked(chat: ChatFormat, system: str | None, *messages: Message) -> tuple[int, ...]:
    return chat.prompt_ids((*dialogue(system=system), *messages, Message(role=Role.USER, content="Q")))


def test_golden_16_a_tools_result_is_never_kept_without_its_question(tool_chat: ChatFormat) -> None:
    history = (*dialogue("Warm?"), *tool_use(), *dialogue("x", "Yes.", "Sure?", "Yes.")[1:])
    served = interaction(tool_chat, prompt="Why?", history=history)
    for limit in (6, 5, 4, 3):
        text = tool_chat.text(read_one(tool_chat, served, max_messages=limit).prompt_ids)
        assert text.startswith("<|im_start|>user\nSure?"), limit


def test_golden_16_a_last_message_that_is_too_long_alone_is_refused(chat: ChatFormat) -> None:
    served = interaction(chat, prompt="why? " * 20, history=dialogue("a", "b"))
    assert refusal_of(chat, served, max_prompt_tokens=64) == "too_long"
    assert refusal_of(chat, served, max_model_len=200) == "too_long"
    calls = interaction(chat, after=tool_use())
    assert refusal_of(chat, calls, max_messages=2) == "too_long"


def test_context_and_response_fit_exactly_or_are_refused(chat: ChatFormat) -> None:
    found = read_one(chat, interaction(chat))
    longest = len(found.hindsight_ids) + len(found.response_ids)
    assert read_one(chat, interaction(chat), max_model_len=longest) == found
    assert refusal_of(chat, interaction(chat), max_model_len=longest - 1) == "too_long"


def test_a_prompt_of_two_hundred_messages_is_cut_with_few_renderings(chat: ChatFormat) -> None:
    history = dialogue(*(f"{i} " * 20 for i in range(200)))
    served = interaction(chat, history=history)
    calls = 0
    render = chat.prompt_ids

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(chat, name)

        def prompt_ids(self, *args: Any, **kwargs: Any) -> tuple[int, ...]:
            nonlocal calls
            calls += 1
            return render(*args, **kwargs)

    found = read_one(Counting(), served, max_prompt_tokens=700)  # type: ignore[arg-type]
    assert 550 < len(found.prompt_ids) <= 700
    assert calls <= 2 * 9 + 1


def test_a_long_answer_is_refused(chat: ChatFormat) -> None:
    assert read_one(chat, interaction(chat), max_response_tokens=6).first_scored == 0
    assert refusal_of(chat, interaction(chat), max_response_tokens=5) == "response_too_long"
