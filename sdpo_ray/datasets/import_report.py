"""Reasons why a record or an answer of a log is not imported, and the report that counts them."""

from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.datasets.formats import Format


class NotImported(StrEnum):
    """Why a record or one of its answers gives no interaction, in the order of the checks."""

    MALFORMED = "malformed"
    """The record is no JSON object, or does not match its format."""
    TOO_FEW_MESSAGES = "too_few_messages"
    NO_FOLLOW_UP = "no_follow_up"
    """No answer in the record is followed by a user's message."""
    TOXIC = "toxic"
    """The log marks it as toxic."""
    TOO_LONG_CONVERSATION = "too_long_conversation"
    TOO_LONG_ANSWER = "too_long_answer"
    """One of the record's answers is too long."""
    TOO_LONG_QUESTION = "too_long_question"
    """One of the record's user messages is too long."""
    NOT_LANGUAGE = "not_language"
    """The log states another language, or another is detected."""
    UNCLEAR_LANGUAGE = "unclear_language"
    """The log states none, and none can be detected: numbers, symbols, code."""
    NO_USER_PROMPT = "no_user_prompt"
    """The messages before the answer do not end with a user message or a tool result."""
    EMPTY_RESPONSE = "empty_response"
    ANSWER_CALLS_TOOLS = "answer_calls_tools"
    """The answer holds tool calls, not only text."""
    EMPTY_FOLLOW_UP = "empty_follow_up"
    DUPLICATE = "duplicate"
    """The same prompt, answer and follow-up were imported before, in any conversation."""
    NOT_DRAWN = "not_drawn"
    """More interactions were found than the limit of the import."""

    @property
    def of_records(self) -> bool:
        """Whether the reason counts records; the others count answers that a user message follows."""
        return list(NotImported).index(self) < list(NotImported).index(NotImported.NO_USER_PROMPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of an import."""

    name: str
    format: Format
    num_records: int
    first_malformed: int | None
    """Line or record number of the first row that could not be parsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotImportedCount:
    """How often one reason occurred."""

    reason: NotImported
    of: str
    """What is counted: `records`, or `answers` of the records that were not refused."""
    n: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """`refusals.json`: counts of an import. Made by `SnapshotImport`; printed by `datasets.import_logs`."""

    sources: tuple[Source, ...]
    num_records: int
    num_answers: int
    """Answers that a user message follows, in the records that were not refused."""
    num_train: int
    num_held_out: int
    refused: tuple[NotImportedCount, ...]
