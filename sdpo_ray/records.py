"""What flows: one frozen record for every arrow of the design.

Each record says who makes it and who reads it. `msgspec` encodes and validates them, so a record read
back from disk is exactly the record that was written. No dict crosses a module boundary.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from sdpo_ray.errors import DataError

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


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class Verdict(StrEnum):
    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Response tokens [start, end) were sampled by `policy_version`."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answered request. Made by `capture.recorder`; read by `curate`.

    Token ids and log-probs are the engine's own output, never made again from text. A turn without ids is known
    as text alone: it was imported from a log of elsewhere.
    """

    turn_id: str
    tenant: str
    user: str
    """Pseudonym of the caller's `user` field; empty when the client named nobody."""
    conversation_id: str
    """Empty unless the client sent one."""
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
    sampling: Sampling
    started_at_s: float
    """Unix time at which the request arrived."""
    finished_at_s: float

    def __post_init__(self) -> None:
        if len(self.response_ids) != len(self.response_logprobs):
            raise DataError(
                f"{self.turn_id}: {len(self.response_ids)} response ids, {len(self.response_logprobs)} log-probs"
            )
        if not self.messages or self.messages[-1].role not in (Role.USER, Role.TOOL):
            raise DataError(f"{self.turn_id}: a turn answers a user's message or a tool's")
        if not any(message.role is Role.USER for message in self.messages):
            raise DataError(f"{self.turn_id}: no user said anything")
        if bool(self.prompt_ids) != bool(self.version_spans):
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
class Interaction:
    """What was asked, what we answered, how the user reacted: the paper's (x, y, o).

    Made by `curate`; read by `distill` and `evaluate`.
    """

    interaction_id: str
    """The id of the answered turn: a turn has one follow-up or none."""
    turn: Turn
    follow_up: str
    """The user's next message, verbatim."""
    follow_up_turn_id: str
    follow_up_at_s: float
    conversation: str
    """Digest that all turns of one conversation share: the unit of the held-out split."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Log-probs that a policy's weights must reproduce on a fixed text.

    `logprobs[i]` is log p(token_ids[i + 1] | token_ids[:i + 1]). Made by `distill.export`, away from
    the serving engine; read by `serve.swap`, which refuses weights whose engine disagrees.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step of an update. Made by `distill.learner`; read by `promote.registry`."""

    step: int
    loss: float
    mean_advantage: float
    """Mean over scored tokens, nats."""
    abs_advantage: float
    gradient_norm: float
    """Before clipping."""
    num_sequences: int
    num_tokens: int
    """Scored tokens."""
    sampler_gap: float
    """Mean |log p(learner) - log p(sampler)| over response tokens, nats: off-policyness of the batch."""
    learning_rate: float = 0.0
    entropy: float = 0.0
    """Mean -log p(y) over scored tokens, nats: the entropy, as the answers at hand sample it."""
    kl_to_base: float = 0.0
    """KL(policy || base) over the vocabulary, nats, mean over the watched tokens of the batch."""
    tis_capped: float = 0.0
    """Share of scored tokens whose importance weight was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How many interactions of a snapshot were not learned from, or not from all of them, and why."""

    reason: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSignal:
    """What each token of one answer is moved by. Made by `distill.signal`; drawn by `promote.heatmap`."""

    interaction_id: str
    prompt: str
    """The user's message that was answered."""
    follow_up: str
    tokens: tuple[str, ...]
    """The answer, a string a token."""
    advantages: tuple[float, ...]
    """log p(y_t | x, o, y_<t) - log p(y_t | x, y_<t) of one policy, nats, neither bounded nor centred."""
    logprobs: tuple[float, ...]
    """log p(y_t | x, y_<t)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A proposed policy. Made by `distill`; read by `evaluate` and `promote`."""

    policy_version: int
    parent_version: int
    path: str
    """Directory that vLLM and transformers load."""
    snapshot_id: str
    fingerprint: Fingerprint
    steps: tuple[StepMetrics, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    alterations: tuple[Refusal, ...] = ()
    """Interactions learned from in part: a history cut, a follow-up shortened, an answer that is not scored."""
    signals: tuple[TokenSignal, ...] = ()
    """Of a few interactions, before the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One measured quantity with its interval."""

    name: str
    n: int
    """Items that entered the estimate."""
    value: float
    low: float
    high: float
    """Two-sided interval at the suite's confidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the benchmarks found. Made by `evaluate.suite`; read by `promote`."""

    policy_version: int
    base_version: int
    champion_version: int
    confidence: float
    scores: tuple[Score, ...]

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with the numbers that led to it. Made by `promote.gate`; read by `promote.release`."""

    policy_version: int
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What should be served. Made by `promote.release`; read by `serve`.

    The file `release.json` is the pointer that every replica follows, also one that starts late.
    """

    policy_version: int
    path: str
    previous_version: int | None
    fingerprint: Fingerprint
    released_at_s: float = field(default=0.0)
