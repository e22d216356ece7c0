"""x and (x, o) as token ids, over one and the same choice of messages.

What does not fit is left out in whole messages, the oldest first; system prompts in front stay, and the last user
message and all behind it too. The first message after a cut is a user's, so no result of a tool loses its call.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile

from sdpo_ray.chat import HINDSIGHT, ChatFormat
from sdpo_ray.config.distill import ContextConfig
from sdpo_ray.records import Message, Role

Messages = tuple[Message, ...]
Render = Callable[[Messages], tuple[int, ...]]
"""Messages to the ids of a prompt: `ChatFormat.prompt_ids` with a turn's tools and template arguments."""

_DOTS = " ... "
_CHARS_A_TOKEN = 64
"""Text is cut to so many characters a token before it is tokenized, which bounds the work on any text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Made by `contexts`; read by `distill.data.examples`."""

    prompt_ids: tuple[int, ...]
    hindsight_ids: tuple[int, ...]
    num_left_out: int
    """Messages of the prompt that neither context has."""


def contexts(messages: Messages, block: str, render: Render, *, config: ContextConfig, room: int) -> Contexts | None:
    """Both contexts with as many of the newest messages as `config` and `room` allow, the same in both.

    `block` is what the last user message has at its end in (x, o); `room` are the tokens either context may have.
    None where the last user message and what follows it are too long alone. Raises what `render` raises, which is
    asked for the same messages more than once.
    """
    system = tuple(takewhile(lambda message: message.role is Role.SYSTEM, messages))
    others = messages[len(system) :]
    if config.empty_system and not system:
        system = (Message(role=Role.SYSTEM, content=""),)

    def prompt(start: int) -> tuple[int, ...]:
        return render((*system, *others[start:]))

    def hindsight(start: int) -> tuple[int, ...]:
        return render(_with_block((*system, *others[start:]), block)) if block else prompt(start)

    def fits(start: int) -> bool:
        return len(prompt(start)) <= min(room, config.max_prompt_tokens or room) and len(hindsight(start)) <= room

    begins = [0, *(i for i, message in enumerate(others) if i and message.role is Role.USER)]
    starts = [i for i in begins if config.max_messages is None or len(others) - i <= config.max_messages]
    # A prompt grows with its messages, so halving finds the longest that fits.
    found = 0 if starts and fits(starts[0]) else bisect_left(starts, True, lo=min(1, len(starts)), key=fits)
    if found == len(starts):
        return None
    start = starts[found]
    return Contexts(prompt_ids=prompt(start), hindsight_ids=hindsight(start), num_left_out=start)


def hindsight_block(template: str, follow_up: str) -> str:
    """The hindsight block that tells `follow_up`, stripped; nothing where that is white space."""
    said = follow_up.strip()
    return HINDSIGHT[template] + said if said else ""


def shortened(text: str, chat: ChatFormat, max_tokens: int) -> str:
    """`text`, or its beginning and its end with dots between: at most `max_tokens`, cut between characters.

    No more than `2 * 64 * max_tokens` characters are tokenized, however long the text is.
    """
    front = back = chat.control.escape(text)
    if len(front) <= 2 * _CHARS_A_TOKEN * max_tokens:
        if len(chat.text_ids(front)) <= max_tokens:
            return text
    else:
        front, back = front[: _CHARS_A_TOKEN * max_tokens], back[-_CHARS_A_TOKEN * max_tokens :]
    begins, ends = chat.spans(front), chat.spans(back)
    keep = (max_tokens - len(chat.text_ids(_DOTS))) // 2
    while True:
        head = front[: begins[keep][0]] if keep < len(begins) else front
        tail = back[ends[-keep - 1][1] :] if keep < len(ends) else back
        short = head.rstrip() + _DOTS + tail.lstrip()
        excess = len(chat.text_ids(short)) - max_tokens
        if excess <= 0 or not keep:
            return short
        # A piece may split into more tokens than it was part of.
        keep = max(0, keep - (excess + 1) // 2)


def _with_block(messages: Messages, block: str) -> Messages:
    last = max(index for index, message in enumerate(messages) if message.role is Role.USER)
    said = replace(messages[last], content=messages[last].content + block)
    return (*messages[:last], said, *messages[last + 1 :])
