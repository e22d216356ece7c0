"""What becomes of a policy: proposed, evaluated, judged, released."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sdpo_ray.records.turns import RefusalCount


class Verdict(StrEnum):
    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Log-probs that a policy's weights must reproduce on a fixed text.

    `logprobs[i]` is log p(token_ids[i + 1] | token_ids[:i + 1]). Made by `distill.train.export`, away from
    the serving engine; read by `serve.weights.swapper`, which refuses weights whose engine disagrees.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """What a file held when it was exported. Made by `distill.train.export`; `serve.weights.checkpoint_io` refuses anything else."""

    name: str
    """Path within the candidate's directory."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One optimizer step of an update. Made by `distill.train.learner`; read by `promote.registry`."""

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
class TokenSignal:
    """What each token of one answer is moved by. Made by `distill.signal`; drawn by `report.token_png`."""

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
class Relevance:
    """Whether a follow-up says anything about its answer. Made by `distill.attribution.relevance`; recorded by `promote.registry`.

    Recorded, not acted on: every interaction is learned from alike.
    """

    interaction_id: str
    signal: float
    """Mean |A| over the scored tokens under the follow-up that the answer got, nats, before the first step."""
    floor: float
    """The same under the follow-up of another conversation's answer: what words of no concern move."""

    @property
    def weight(self) -> float:
        """signal / (signal + floor): 1/2 where the follow-up moves the answer no more than a stranger's does."""
        return self.signal / (self.signal + self.floor) if self.signal + self.floor else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What an adapter gained on one interaction that it never saw. Made by `distill.loss.kl_gain`; read by `evaluate`."""

    interaction_id: str
    conversation: str
    num_tokens: int
    """Scored tokens of the answer."""
    nats: float
    """Over those tokens together: how much closer the policy came to what the one beneath says under hindsight."""


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
    refusals: tuple[RefusalCount, ...] = ()
    alterations: tuple[RefusalCount, ...] = ()
    """Interactions learned from in part: a history cut, a follow-up shortened, an answer that is not scored."""
    signals: tuple[TokenSignal, ...] = ()
    """Of a few interactions, before the first step."""
    digests: tuple[FileDigest, ...] = ()
    """Of the files of weights that may be served."""


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
    adapter: str = ""
    """Directory of the LoRA adapter that makes this policy of the run's base; empty where the weights are whole. Read
    where `serve.swap` is `adapter`."""
    digests: tuple[FileDigest, ...] = ()
    """As on `Candidate`; empty for what was not exported here, which only its fingerprint vouches for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A candidate among users, before it is promoted. Made by `promote.canary`; read by `serve.canary.router`.

    The file `canary.json` holds it; without the file nobody meets a candidate.
    """

    candidate: Release
    champion_version: int
    mode: Literal["shadow", "canary"]
    share: float
    """Of conversations."""
    started_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalPolicy:
    """A LoRA adapter over one shared policy, for one user or tenant. Made by jobs; read by `serve.lora.personal_policies`.

    The file `personal/<owner>.json` points at it. Where the shared policy has moved on, it is stale and not served.
    """

    owner: str
    """Keyed digest of tenant and pseudonym: `capture.chat_request.owners`."""
    version: int
    """Counts this owner's personal policies from 1."""
    name: str
    """What the engine knows it by; never used again for other weights."""
    adapter: str
    """Directory in peft's format."""
    base_version: int
    """Of the shared policy beneath it."""
    fingerprint: Fingerprint
    """Of the shared policy with the adapter."""
    released_at_s: float
    digests: tuple[FileDigest, ...] = ()
    """Of the adapter's weights."""
