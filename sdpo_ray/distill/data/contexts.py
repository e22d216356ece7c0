"""Token ids of x and of the contexts that add a text to it, all over the same choice of messages.

What does not fit is left out in whole messages, oldest first. Leading system messages, the last user message and
everything after it always stay. The first message after a cut is a user's, so no tool result loses its call.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from sdpo_ray.chat import HINDSIGHT_BLOCKS, ChatFormat
from sdpo_ray.config.distill import ContextConfig
from sdpo_ray.distill.data.example import HINDSIGHT
from sdpo_ray.records import Interaction, Message, Role

Messages = tuple[Message, ...]
Render = Callable[[Messages], tuple[int, ...]]
"""Messages to the ids of a prompt: `ChatFormat.prompt_ids` with a turn's tools and template arguments."""

_ELLIPSIS = " ... "
_CHARS_PER_TOKEN = 64
"""Text is cut to this many characters a token before it is tokenized, which bounds the work on any text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextBuilder:
    """One context of an interaction: x with a text in the hindsight block of its last user message.

    Made by the modules of `distill.signals`; read by `distill.data.examples`.
    """

    name: str
    """Key under which `Example.context_ids` returns it."""
    text: Callable[[Interaction], str]
    """The text in the block, before it is shortened; x stays as it is where the text is white space."""


def _follow_up(interaction: Interaction) -> str:
    return interaction.follow_up


HINDSIGHT_CONTEXT = ContextBuilder(name=HINDSIGHT, text=_follow_up)
"""(x, o)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Made by `contexts`; read by `distill.data.examples`."""

    prompt_ids: tuple[int, ...]
    hindsight_ids: tuple[int, ...]
    num_left_out: int
    """Messages of the prompt that no context has."""
    extra_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def contexts(
    messages: Messages,
    block: str,
    render: Render,
    *,
    config: ContextConfig,
    room: int,
    extra_blocks: Mapping[str, str] | None = None,
) -> Contexts | None:
    """All contexts with as many of the newest messages as `config` and `room` allow, the same in each.

    `block` is appended to the last user message in (x, o), and each of `extra_blocks` in a context of its name; an
    empty block gives x. `room` is the most tokens that a context may have. Returns None where the last user message
    and what follows it are too long alone. Calls `render` several times for the same messages and raises what it
    raises.
    """
    blocks = {HINDSIGHT: block} | dict(extra_blocks or {})
    system = tuple(takewhile(lambda message: message.role is Role.SYSTEM, messages))
    others = messages[len(system) :]

    def prompt(start: int) -> tuple[int, ...]:
        return render((*system, *others[start:]))

    def extended(start: int, block: str) -> tuple[int, ...]:
        return render(_with_block((*system, *others[start:]), block)) if block else prompt(start)

    def fits(start: int) -> bool:
        return len(prompt(start)) <= min(room, config.max_prompt_tokens or room) and all(
            len(extended(start, block)) <= room for block in blocks.values()
        )

    user_starts = [0, *(i for i, message in enumerate(others) if i and message.role is Role.USER)]
    starts = [i for i in user_starts if config.max_messages is None or len(others) - i <= config.max_messages]
    # A prompt grows with its messages, so bisection finds the longest that fits.
    found = 0 if starts and fits(starts[0]) else bisect_left(starts, True, lo=min(1, len(starts)), key=fits)
    if found == len(starts):
        return None
    start = starts[found]
    ids = {name: extended(start, block) for name, block in blocks.items()}
    return Contexts(prompt_ids=prompt(start), hindsight_ids=ids.pop(HINDSIGHT), num_left_out=start, extra_ids=ids)


def hindsight_block(template: str, follow_up: str) -> str:
    """The hindsight block with `follow_up`, stripped; empty where that is white space."""
    text = follow_up.strip()
    return HINDSIGHT_BLOCKS[template] + text if text else ""


def shortened(text: str, chat: ChatFormat, max_tokens: int) -> str:
    """`text`, or its beginning and its end with dots between: at most `max_tokens`, cut between characters.

    No more than `2 * 64 * max_tokens` characters are tokenized, however long the text is.
    """
    front = back = chat.control.escape(text)
    if len(front) <= 2 * _CHARS_PER_TOKEN * max_tokens:
        if len(chat.text_ids(front)) <= max_tokens:
            return text
    else:
        front, back = front[: _CHARS_PER_TOKEN * max_tokens], back[-_CHARS_PER_TOKEN * max_tokens :]
    front_spans, back_spans = chat.spans(front), chat.spans(back)
    keep = (max_tokens - len(chat.text_ids(_ELLIPSIS))) // 2
    while True:
        head = front[: front_spans[keep][0]] if keep < len(front_spans) else front
        tail = back[back_spans[-keep - 1][1] :] if keep < len(back_spans) else back
        short = head.rstrip() + _ELLIPSIS + tail.lstrip()
        excess = len(chat.text_ids(short)) - max_tokens
        if excess <= 0 or not keep:
            return short
        # A piece alone may split into more tokens than it did within the text.
        keep = max(0, keep - (excess + 1) // 2)


def _with_block(messages: Messages, block: str) -> Messages:
    last = max(index for index, message in enumerate(messages) if message.role is Role.USER)
    extended = replace(messages[last], content=messages[last].content + block)
    return (*messages[:last], extended, *messages[last + 1 :])
