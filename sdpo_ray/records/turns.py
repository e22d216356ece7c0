"""Records of a chat turn, its feedback, and the interactions and snapshots made of them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from sdpo_ray.errors import DataError

BASE_VERSION = 1
"""The policy version that a run starts from: MLflow numbers model versions from 1."""
FOREIGN = -1
"""The policy version of a response that no policy of this run made."""


class Role(StrEnum):
    """Role of a chat message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Consent(StrEnum):
    """What a user allows to be done with a turn."""

    TRAIN = "train"
    """Store it and train on it."""
    NONE = "none"
    """Answer it and store nothing."""


class Thumb(StrEnum):
    """A user's rating of a response."""

    UP = "up"
    DOWN = "down"


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call by the assistant."""

    call_id: str
    name: str
    arguments: str
    """JSON, as the client sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message as the client sent it: text, with tool calls or as the result of one."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """For a tool's message, the id of the call whose result it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling parameters that the engine applied, which may differ from those of the request."""

    temperature: float
    top_p: float
    top_k: int
    """0 means no limit."""
    max_tokens: int
    seed: int | None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    constrained: bool = False
    """Whether a grammar, a JSON schema, a list of words or a bias forbade, forced or favoured tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Response tokens [start, end) were sampled by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """Number of pieces of one kind that were removed from a record before it was first written."""

    kind: str
    """As in `redaction.Kind`."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingKeys:
    """Keyed digests (HMAC-SHA256, 32 hex digits) of a turn's messages, before any redaction.

    Each covers tenant, user and conversation id too, so different users share none of them, unless they are anonymous
    and sent identical messages. Made by `capture.chat_request`; read by `curate.pairing`.
    """

    prompt: str = ""
    """Digest of all messages of the request; equal for two requests with the same messages."""
    parent: str = ""
    """The `continuation` of the turn that this one follows; empty where it follows none."""
    continuation: str = ""
    """Digest of all messages of the request and the response."""
    conversation: str = ""
    """Digest of the conversation id where the client sent one, else of the messages up to the first user message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answered request. Made by `capture.recorder`; read by `curate`.

    Token ids and log-probs are the engine's own output, never recomputed from text. A turn without ids is known as text
    only: it was imported from another system's log, or it was redacted, and its ids would reveal the removed text.
    """

    turn_id: str
    tenant: str
    user: str
    """Pseudonym of the request's `user` field; empty where it had none."""
    conversation_id: str
    """Pseudonym of the conversation id that the client sent; empty where it sent none."""
    consent: Consent
    messages: tuple[Message, ...]
    """The prompt x as the client sent it; its last message is a user's or a tool's."""
    tools: str = ""
    """JSON of the tools in the request; empty where it had none."""
    template_kwargs: str = ""
    """JSON of the request's chat template arguments; empty where it had none."""
    response: str
    """The response y as the client received it."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    """Natural log of the probability with which each response token was sampled, one per token id."""
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    """ABORT where the client disconnected or the request timed out; the response is then the part made so far."""
    sampling: Sampling
    response_calls: tuple[ToolCall, ...] = ()
    """Tool calls in the response as the client received them; `response` is the text that they were parsed from."""
    adapter: str = ""
    """Name of the personal policy that answered; empty for the shared policy of `version_spans`."""
    started_at_s: float
    """Unix time at which the request arrived."""
    finished_at_s: float
    keys: PairingKeys = PairingKeys()
    """Empty on a turn of a snapshot made from logs, which is not paired."""
    redactions: tuple[Redaction, ...] = ()

    def __post_init__(self) -> None:
        if len(self.response_ids) != len(self.response_logprobs):
            raise DataError(
                f"{self.turn_id}: {len(self.response_ids)} response ids, {len(self.response_logprobs)} log-probs"
            )
        if not self.messages or self.messages[-1].role not in (Role.USER, Role.TOOL):
            raise DataError(f"{self.turn_id}: the last message must be a user's or a tool's")
        if not any(message.role is Role.USER for message in self.messages):
            raise DataError(f"{self.turn_id}: there is no user message")
        if self.redactions and (self.prompt_ids or self.response_ids):
            raise DataError(f"{self.turn_id}: its token ids would reveal what was redacted")
        if bool(self.prompt_ids) != bool(self.version_spans) and not self.redactions:
            raise DataError(f"{self.turn_id}: it has prompt token ids without policy versions, or the reverse")
        if self.response_ids and not self.prompt_ids:
            raise DataError(f"{self.turn_id}: response ids without prompt ids")

    @property
    def text_only(self) -> bool:
        """Whether the turn is known as text only, without token ids."""
        return not self.prompt_ids

    @property
    def policy_version(self) -> int:
        """The version that made this response, the oldest of several; FOREIGN where no policy of this run did."""
        return min((span.policy_version for span in self.version_spans), default=FOREIGN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A user's feedback on a response outside the chat. Made by `capture.recorder`; read by `curate`.

    A comment becomes the follow-up o of an interaction; a thumb is a label for evaluation; an edited response is a
    preferred completion. Raises DataError where all three are empty.
    """

    feedback_id: str
    """Digest of everything but the time, so that the same feedback sent twice is one event."""
    turn_id: str
    """Id of the turn that the feedback is on."""
    tenant: str
    user: str
    """As on `Turn`."""
    consent: Consent
    comment: str = ""
    thumb: Thumb | None = None
    edited: str = ""
    """The response as the user edited it."""
    given_at_s: float
    redactions: tuple[Redaction, ...] = ()

    def __post_init__(self) -> None:
        if not (self.comment.strip() or self.edited.strip() or self.thumb):
            raise DataError(f"{self.feedback_id}: it has neither a comment, a thumb nor an edited response")


Event: TypeAlias = Turn | Feedback
"""The records in the event log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """A prompt, its response and the user's follow-up: the paper's (x, y, o).

    Made by `curate`; read by `distill` and `evaluate`.
    """

    interaction_id: str
    """Id of the turn, which has at most one follow-up message; id of the feedback where a comment is the follow-up."""
    turn: Turn
    follow_up: str
    """The user's next message, or the comment, verbatim."""
    follow_up_turn_id: str
    """Id of the turn, or of the feedback, that contains the follow-up."""
    follow_up_at_s: float
    """Unix time."""
    conversation: str
    """Digest that all turns of one conversation share; the held-out split is by conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCount:
    """Number of items that were left out, or used in part, for one reason."""

    reason: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The interactions that one update trains on. Made by `curate.sampling`; read by `distill`."""

    snapshot_id: str
    table_version: int
    """Version of the table `interactions` that the snapshot was drawn from."""
    seed: int
    rule: str
    """The sampling rule in words and numbers, as recorded in MLflow."""
    interaction_ids: tuple[str, ...]
    """In training order."""
    held_out_ids: tuple[str, ...]
    path: str
    """Directory of `interactions.parquet`, with rows in the order of `interaction_ids`."""
    digest: str
    """SHA-256 of the rows."""
    last_interaction_at_s: float
    """Unix time of the newest follow-up."""
    last_batch: int = 0
    """Number of the newest table batch that was available to the draw; later batches are new to the next draw."""
    not_drawn: tuple[RefusalCount, ...] = ()
    """Interactions that the draw left out, by reason."""
