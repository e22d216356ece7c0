"""Split a logged conversation into interactions, or refuse it with a reason. Pure; default limits are the paper's.

The prompt x of an answer holds the leading system prompts, then the last few non-empty messages, starting with a
user's and alternating. Of consecutive messages of one role the last is kept, since it is the one that was answered;
the SDPO authors' code keeps the first. Tool calls and tool results are never dropped by this rule.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import msgspec

from sdpo_ray.curate.language import Detect, is_stated, sample
from sdpo_ray.datasets.formats import LoggedConversation
from sdpo_ray.datasets.import_report import NotImported
from sdpo_ray.records import Consent, FinishReason, Interaction, Message, Role, Sampling, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLimits:
    """Which conversations and answers of a log are imported. Made by `jobs.import_logs`; read by `LogReader`."""

    min_messages: int = 3
    """Fewest messages of a conversation. System prompts do not count, here and in `max_messages`."""
    max_messages: int = 5
    """Most messages of a prompt."""
    max_conversation_chars: int = 100_000
    max_answer_chars: int = 4096
    max_question_chars: int | None = None
    language: str | None = "en"
    """Code in `curate.language.LANGUAGES`; None for any language."""
    drop_toxic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConversation:
    """Interactions of one record, and what was refused. Made by `split_conversation`; read by `datasets.log_reader`."""

    interactions: tuple[Interaction, ...]
    refused: Counter[NotImported]


def split_conversation(
    conversation: LoggedConversation, *, tenant: str, limits: SplitLimits, detect: Detect
) -> SplitConversation:
    """An interaction for each answer that a user's message follows, in order."""
    messages = conversation.messages
    if (reason := _refusal(conversation, limits, detect)) is not None:
        return SplitConversation(interactions=(), refused=Counter([reason]))
    answers = _answers(messages)[-1 if conversation.last_only else 0 :]
    found = [_interaction(conversation, index, tenant, limits.max_messages) for index in answers]
    return SplitConversation(
        interactions=tuple(each for each in found if isinstance(each, Interaction)),
        refused=Counter(each for each in found if isinstance(each, NotImported)),
    )


def _answers(messages: Sequence[Message]) -> list[int]:
    """Indices of the assistant messages that a user message follows."""
    roles = [message.role for message in messages]
    return [index for index, pair in enumerate(pairwise(roles)) if pair == (Role.ASSISTANT, Role.USER)]


def _refusal(conversation: LoggedConversation, limits: SplitLimits, detect: Detect) -> NotImported | None:
    messages = conversation.messages
    if sum(message.role is not Role.SYSTEM for message in messages) < limits.min_messages:
        return NotImported.TOO_FEW_MESSAGES
    if not _answers(messages):
        return NotImported.NO_FOLLOW_UP
    if limits.drop_toxic and conversation.toxic:
        return NotImported.TOXIC
    if sum(len(message.content) for message in messages) > limits.max_conversation_chars:
        return NotImported.TOO_LONG_CONVERSATION
    if _longest(messages, Role.ASSISTANT) > limits.max_answer_chars:
        return NotImported.TOO_LONG_ANSWER
    if limits.max_question_chars is not None and _longest(messages, Role.USER) > limits.max_question_chars:
        return NotImported.TOO_LONG_QUESTION
    return _language_refusal(conversation, limits.language, detect) if limits.language is not None else None


def _longest(messages: Sequence[Message], role: Role) -> int:
    return max((len(message.content) for message in messages if message.role is role), default=0)


def _language_refusal(conversation: LoggedConversation, language: str, detect: Detect) -> NotImported | None:
    if conversation.language:
        return None if is_stated(conversation.language, language) else NotImported.NOT_LANGUAGE
    found = detect(sample(conversation.messages))
    if found is None:
        return NotImported.UNCLEAR_LANGUAGE
    return None if found == language else NotImported.NOT_LANGUAGE


def _interaction(
    conversation: LoggedConversation, index: int, tenant: str, max_messages: int
) -> Interaction | NotImported:
    answer, follow_up = conversation.messages[index], conversation.messages[index + 1].content
    prompt = prompt_before(conversation.messages[:index], max_messages)
    if not prompt:
        return NotImported.NO_USER_PROMPT
    if answer.tool_calls:
        return NotImported.ANSWER_CALLS_TOOLS
    if not answer.content.strip():
        return NotImported.EMPTY_RESPONSE
    if not follow_up.strip():
        return NotImported.EMPTY_FOLLOW_UP
    # A digest of the content alone: importing the same conversation again gives the same id.
    content = (prompt, conversation.tools, conversation.template_kwargs, answer.content, follow_up)
    interaction_id = hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:32]
    turn = Turn(
        turn_id=interaction_id,
        tenant=tenant,
        user=conversation.user,
        conversation_id="",
        consent=Consent.TRAIN,
        messages=prompt,
        tools=conversation.tools,
        template_kwargs=conversation.template_kwargs,
        response=answer.content,
        prompt_ids=(),
        response_ids=(),
        response_logprobs=(),
        version_spans=(),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=0, seed=None),
        started_at_s=conversation.times_s[index - 1],
        finished_at_s=conversation.times_s[index],
    )
    return Interaction(
        interaction_id=interaction_id,
        turn=turn,
        follow_up=follow_up,
        follow_up_turn_id="",
        follow_up_at_s=conversation.times_s[index + 1],
        conversation=conversation_digest(conversation),
    )


def conversation_digest(conversation: LoggedConversation) -> str:
    """Digest of the log's conversation id, or else of the first user message; groups the held-out split."""
    opening = next((each.content for each in conversation.messages if each.role is Role.USER), "")
    identity = ("id", conversation.key) if conversation.key else ("opening", opening)
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def prompt_before(messages: Sequence[Message], max_messages: int) -> tuple[Message, ...]:
    """Prompt of the answer that follows `messages`; empty if it would not end with a user message or a tool result."""
    system = tuple(takewhile(lambda message: message.role is Role.SYSTEM, messages))
    others = [m for m in messages[len(system) :] if m.role is Role.TOOL or m.tool_calls or m.content.strip()]
    others = others[-max_messages:]
    first = next((index for index, message in enumerate(others) if message.role is Role.USER), len(others))
    kept: list[Message] = []
    for message in others[first:]:
        if kept and message.role is kept[-1].role and message.role in (Role.USER, Role.ASSISTANT):
            kept.pop()
        kept.append(message)
    return (*system, *kept) if kept and kept[-1].role in (Role.USER, Role.TOOL) else ()
