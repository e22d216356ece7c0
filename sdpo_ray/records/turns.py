"""What people said, what was answered, and what of it is learned from."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from sdpo_ray.errors import DataError

BASE_VERSION = 1
"""The policy version that a run starts from: MLflow numbers model versions from 1."""
FOREIGN = -1
"""The policy version of an answer that no policy of this run made."""


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Consent(StrEnum):
    """What a user allows us to do with a turn."""

    TRAIN = "train"
    """Store it and learn from it."""
    NONE = "none"
    """Answer, and store nothing."""


class Thumb(StrEnum):
    UP = "up"
    DOWN = "down"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a function by the assistant."""

    call_id: str
    name: str
    arguments: str
    """JSON, as the client sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a chat, as the client sent it: text, and calls of tools or the result of one."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """Of a tool's message: the call whose result it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The sampling parameters the engine honoured, not those that were asked for."""

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
    """Whether tokens were forbidden, forced or favoured: by a grammar, a JSON schema, a list of words, a bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Response tokens [start, end) were sampled by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """How many pieces of one kind were taken out of a record before it was first written."""

    kind: str
    """As in `redaction.Kind`."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingKeys:
    """Keyed digests (HMAC-SHA256, 32 hex digits) of what was said, in the words before any redaction.

    Each covers tenant, user and conversation id, too, so people who never met share none of them unless they are
    anonymous and used identical words. Made by `capture.chat_request`; read by `curate.pairing`.
    """

    prompt: str = ""
    """Of everything that was asked: two requests in the same words share it."""
    parent: str = ""
    """The `continuation` of the answer that this turn follows; empty when it follows none."""
    continuation: str = ""
    """Of all messages with the answer behind them."""
    conversation: str = ""
    """Of the conversation id where the client sent one, else of the words up to the first user's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answered request. Made by `capture.recorder`; read by `curate`.

    Token ids and log-probs are the engine's own output, never made again from text. A turn without ids is known
    as text alone: it was imported from a log of elsewhere, or something was redacted in it, which its ids would spell.
    """

    turn_id: str
    tenant: str
    user: str
    """Pseudonym of the caller's `user` field; empty when the client named nobody."""
    conversation_id: str
    """Pseudonym of the id the client sent; empty unless it sent one."""
    consent: Consent
    messages: tuple[Message, ...]
    """The prompt x, as the client sent it; ends with a user's message or a tool's."""
    tools: str = ""
    """JSON of the tools the client offered; empty where it offered none."""
    template_kwargs: str = ""
    """JSON of the arguments the client gave the chat template; empty where it gave none."""
    response: str
    """The answer y as the client saw it."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    """Natural log of the probability with which each response token was sampled, one per id."""
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    """ABORT where the client hung up or the time was over: the response is what had been made by then."""
    sampling: Sampling
    response_calls: tuple[ToolCall, ...] = ()
    """Calls of tools that the client was shown in the response; `response` is the text they were written in."""
    adapter: str = ""
    """Name of the personal policy that answered; empty where it was the shared one of `version_spans`."""
    started_at_s: float
    """Unix time at which the request arrived."""
    finished_at_s: float
    keys: PairingKeys = PairingKeys()
    """Empty on a turn that is nobody's to pair: one of a snapshot made from logs."""
    redactions: tuple[Redaction, ...] = ()

    def __post_init__(self) -> None:
        if len(self.response_ids) != len(self.response_logprobs):
            raise DataError(
                f"{self.turn_id}: {len(self.response_ids)} response ids, {len(self.response_logprobs)} log-probs"
            )
        if not self.messages or self.messages[-1].role not in (Role.USER, Role.TOOL):
            raise DataError(f"{self.turn_id}: a turn answers a user's message or a tool's")
        if not any(message.role is Role.USER for message in self.messages):
            raise DataError(f"{self.turn_id}: no user said anything")
        if self.redactions and (self.prompt_ids or self.response_ids):
            raise DataError(f"{self.turn_id}: its token ids would spell what was redacted")
        if bool(self.prompt_ids) != bool(self.version_spans) and not self.redactions:
            raise DataError(f"{self.turn_id}: token ids and policy versions are known together or not at all")
        if self.response_ids and not self.prompt_ids:
            raise DataError(f"{self.turn_id}: response ids without prompt ids")

    @property
    def text_only(self) -> bool:
        return not self.prompt_ids

    @property
    def policy_version(self) -> int:
        """The version that made this response, the oldest one where several did; FOREIGN where none of ours did."""
        return min((span.policy_version for span in self.version_spans), default=FOREIGN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user says of an answer outside the chat. Made by `capture.recorder`; read by `curate`.

    A comment becomes the follow-up o of an interaction; a thumb is a label for evaluation; an edited answer is a
    preferred completion. At least one of the three is there.
    """

    feedback_id: str
    """Digest of everything else but the time, so that the same feedback sent again is the same event."""
    turn_id: str
    """The answer that is meant."""
    tenant: str
    user: str
    """As on `Turn`."""
    consent: Consent
    comment: str = ""
    thumb: Thumb | None = None
    edited: str = ""
    """The answer as the user would have had it."""
    given_at_s: float
    redactions: tuple[Redaction, ...] = ()

    def __post_init__(self) -> None:
        if not (self.comment.strip() or self.edited.strip() or self.thumb):
            raise DataError(f"{self.feedback_id}: neither a comment, a thumb nor an edited answer")


Event: TypeAlias = Turn | Feedback
"""What the event log holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """What was asked, what we answered, how the user reacted: the paper's (x, y, o).

    Made by `curate`; read by `distill` and `evaluate`.
    """

    interaction_id: str
    """Id of the answered turn, which has one follow-up or none; of the feedback where a comment is the follow-up."""
    turn: Turn
    follow_up: str
    """The user's next message, or comment, verbatim."""
    follow_up_turn_id: str
    """Id of the turn, or of the feedback, that brought it."""
    follow_up_at_s: float
    conversation: str
    """Digest that all turns of one conversation share: the unit of the held-out split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCount:
    """How many of something were left out, or not taken whole, and why."""

    reason: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The interactions one update learns from. Made by `curate.sampling`; read by `distill`."""

    snapshot_id: str
    table_version: int
    """Version of the table `interactions` that was drawn from."""
    seed: int
    rule: str
    """The sampling rule in words and numbers, as recorded in MLflow."""
    interaction_ids: tuple[str, ...]
    """In the order of training."""
    held_out_ids: tuple[str, ...]
    path: str
    """Directory with `interactions.parquet` (rows in the order of `interaction_ids`)."""
    digest: str
    """sha256 of the rows."""
    last_interaction_at_s: float
    """Unix time of the newest follow-up in it."""
    last_batch: int = 0
    """The newest batch of the table that it could draw from; what is newer is new to the next draw."""
    not_drawn: tuple[RefusalCount, ...] = ()
    """How many interactions the draw had to leave out, by reason."""
