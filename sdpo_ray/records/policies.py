"""Records of a policy as it is proposed, evaluated, judged and released."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sdpo_ray.records.turns import RefusalCount


class Verdict(StrEnum):
    """The gate's verdict on a candidate."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Log-probs that a policy's weights must reproduce on a fixed text.

    `logprobs[i]` is log p(token_ids[i + 1] | token_ids[:i + 1]), in nats. Made by `distill.train.export` with
    transformers; read by `serve.weights.swapper`, which refuses weights where the engine's log-probs differ.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """Digest of an exported file. Made by `distill.train.export`; verified by `serve.weights.checkpoint_io`."""

    name: str
    """Path within the candidate's directory."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """Metrics of one optimizer step. Made by `distill.train.learner`; read by `promote.registry`."""

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
    """Mean |log p(learner) - log p(sampler)| over response tokens, nats: how far off-policy the batch is."""
    learning_rate: float = 0.0
    entropy: float = 0.0
    """Mean -log p(y) over scored tokens, nats: an estimate of the entropy from the batch's responses."""
    kl_to_base: float = 0.0
    """KL(policy || base) over the vocabulary, nats, mean over the watched tokens of the batch."""
    tis_capped: float = 0.0
    """Share of scored tokens whose importance weight was capped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAttribution:
    """Attribution of a follow-up to the tokens of its response.

    Made by `distill.attribution.token_attribution`; read by `report.token_png` and `report.token_html`.
    """

    interaction_id: str
    prompt: str
    """The last user message of the prompt."""
    follow_up: str
    tokens: tuple[str, ...]
    """The response, one string per token."""
    advantages: tuple[float, ...]
    """log p(y_t | x, o, y_<t) - log p(y_t | x, y_<t) of one policy, nats, not bounded and without a baseline."""
    logprobs: tuple[float, ...]
    """log p(y_t | x, y_<t), nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevance:
    """How much a follow-up concerns its response, for the record only: it does not weight the interaction.

    Made by `distill.attribution.relevance`; read by `promote.registry`.
    """

    interaction_id: str
    signal: float
    """Mean |A| over the scored tokens under the response's own follow-up, nats, before the first step."""
    floor: float
    """The same under the follow-up of another conversation: the effect of an unrelated text."""

    @property
    def weight(self) -> float:
        """signal / (signal + floor): 1/2 where the follow-up has no more effect than an unrelated one."""
        return self.signal / (self.signal + self.floor) if self.signal + self.floor else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Gain of an adapter on one held-out interaction. Made by `distill.loss.kl_gain`; read by `evaluate`."""

    interaction_id: str
    conversation: str
    num_tokens: int
    """Scored tokens of the response."""
    nats: float
    """Sum over those tokens: reduction of KL to the shared policy under hindsight."""


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
    """Interactions trained on in part: a history cut, a follow-up shortened, a response that is not scored."""
    attributions: tuple[TokenAttribution, ...] = ()
    """Attributions of a few interactions, before the first step."""
    digests: tuple[FileDigest, ...] = ()
    """Digests of the files that may be served."""


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
    """Scores of a candidate. Made by `evaluate.suite`; read by `promote`."""

    policy_version: int
    base_version: int
    champion_version: int
    confidence: float
    scores: tuple[Score, ...]

    def score(self, name: str) -> Score | None:
        """The score of this name; None where there is none."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with the numbers that led to it. Made by `promote.gate`; read by `promote.release`."""

    policy_version: int
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The policy to serve. Made by `promote.release`; read by `serve`.

    The file `release.json` is the release pointer, which every replica polls and reads when it starts.
    """

    policy_version: int
    path: str
    previous_version: int | None
    fingerprint: Fingerprint
    released_at_s: float = field(default=0.0)
    adapter: str = ""
    """Directory of the LoRA adapter that turns the run's base into this policy; empty where there is none. Read where
    `serve.swap` is `adapter`."""
    digests: tuple[FileDigest, ...] = ()
    """As on `Candidate`; empty for a policy that this project did not export, which only its fingerprint verifies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A candidate on live traffic before it is promoted. Made by `promote.canary`; read by `serve.canary.router`.

    Stored as the file `canary.json`; without the file no request reaches a candidate.
    """

    candidate: Release
    champion_version: int
    mode: Literal["shadow", "canary"]
    share: float
    """Share of conversations."""
    started_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalPolicy:
    """A LoRA adapter over one shared policy, for one user or tenant.

    Made by `personal.trainer`; read by `serve.lora.personal_policies`. Stored as the file `personal/<owner>.json`. It
    is not served once the shared policy has another version than `base_version`.
    """

    owner: str
    """Keyed digest of tenant and pseudonym: `capture.chat_request.owners`."""
    version: int
    """Number of this owner's personal policy, from 1."""
    name: str
    """The adapter's name in the engine; never reused for other weights."""
    adapter: str
    """Directory in peft's format."""
    base_version: int
    """Policy version beneath the adapter."""
    fingerprint: Fingerprint
    """Fingerprint of the shared policy with the adapter."""
    released_at_s: float
    digests: tuple[FileDigest, ...] = ()
    """Digest of the adapter's weights."""
