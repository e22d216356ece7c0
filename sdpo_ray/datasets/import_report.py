"""What becomes of a log's records: why one is not learned from, and the report that counts them."""

from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.datasets.formats import Format


class NotImported(StrEnum):
    """Why a record or one of its answers gives no interaction; in the order in which it is looked for."""

    MALFORMED = "malformed"
    """The record is no JSON object, or not what its format says."""
    TOO_FEW_MESSAGES = "too_few_messages"
    NO_FOLLOW_UP = "no_follow_up"
    """No answer in the record is followed by a user's message."""
    TOXIC = "toxic"
    """The log calls it so."""
    TOO_LONG_CONVERSATION = "too_long_conversation"
    TOO_LONG_ANSWER = "too_long_answer"
    """One of the answers in the record is too long."""
    TOO_LONG_QUESTION = "too_long_question"
    """One of the users' messages in the record is too long."""
    NOT_LANGUAGE = "not_language"
    """The log states another language, or another one is detected."""
    UNCLEAR_LANGUAGE = "unclear_language"
    """The log states none, and none can be detected: numbers, signs, code."""
    NO_USER_PROMPT = "no_user_prompt"
    """What came before the answer does not end with a user's message or the result of a tool."""
    EMPTY_RESPONSE = "empty_response"
    ANSWER_CALLS_TOOLS = "answer_calls_tools"
    """The answer is more than its text."""
    EMPTY_FOLLOW_UP = "empty_follow_up"
    DUPLICATE = "duplicate"
    """The same x, y and o came before, in whichever conversation."""
    NOT_DRAWN = "not_drawn"
    """More interactions were found than asked for."""

    @property
    def of_records(self) -> bool:
        """Whether it counts records; the others count answers that a user's message follows."""
        return list(NotImported).index(self) < list(NotImported).index(NotImported.NO_USER_PROMPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of an import."""

    name: str
    format: Format
    num_records: int
    first_malformed: int | None
    """Line, or record, of the first that could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotImportedCount:
    """How often one reason was found."""

    reason: NotImported
    of: str
    """What is counted: `records`, or `answers` of the records that were not refused."""
    n: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """`refusals.json`: what became of every record. Made by `Import`; read by people and `jobs.import_logs`."""

    sources: tuple[Source, ...]
    num_records: int
    num_answers: int
    """Answers followed by a user's message, in the records that were not refused."""
    num_train: int
    num_held_out: int
    refused: tuple[NotImportedCount, ...]
