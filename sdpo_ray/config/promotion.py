"""The sections `[evaluate]` and `[promote]`: how a candidate is evaluated, judged and released."""

from typing import Literal

from pydantic import Field, FiniteFloat

from sdpo_ray.config.section import Section


class EvaluateConfig(Section):
    """The evaluation of a candidate."""

    questions: str = ""
    """Function that gives the prompts and says which answers are right, as `package.module:attribute`: takes the run,
    returns `evaluate.questions.Questions`."""
    judge: str = ""
    """Function that gives the judge of pairs of answers, as `package.module:attribute`: takes the run, returns an
    `evaluate.judge.Judge`."""
    num_prompts: int = Field(default=192, ge=8)
    """Held-out prompts, the same for every policy."""
    max_tokens: int = Field(default=64, ge=1)
    """Most tokens of a response."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    concurrency: int = Field(default=16, ge=1)
    """Requests at a time."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the scores' two-sided intervals."""


class CanaryConfig(Section):
    """What a candidate that passed the gate must show on live traffic before it is promoted.

    Needs the application `canary`, an engine of its own: `--set promote.canary.mode=canary` deploys it.
    """

    mode: Literal["off", "shadow", "canary"] = "off"
    """`canary` answers a share of conversations; `shadow` answers copies of them, and no user sees its responses."""
    share: float = Field(default=0.1, gt=0, le=0.5)
    """Share of conversations; each stays with one policy."""
    min_answers: int = Field(default=200, ge=1)
    """Conversations in which users reacted to the candidate, or copies that a shadow answered, after which it is
    promoted if no limit was passed."""
    max_hours: float = Field(default=24, gt=0)
    """Hours after which a candidate with fewer answers is held."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Probability that a candidate which is no worse is rolled back, however often the test is evaluated."""
    max_slower: float = Field(default=1.5, ge=1)
    """Most seconds a token of the candidate's responses, as a multiple of the champion's."""


class PromoteConfig(Section):
    """The gate, and MLflow's registry behind it."""

    min_win_rate: float = Field(default=0.5, ge=0, le=1)
    """Lowest lower end of the interval of the win rate against the champion, ties counted half."""
    max_retention_drop: float = Field(default=0.03, ge=0, le=1)
    """Most that a candidate's share of right answers may fall below the base's."""
    min_retention: float = Field(default=0.95, ge=0, le=1)
    """Lowest share of right answers of a promoted candidate."""
    max_length_ratio: float = Field(default=2.0, gt=1)
    """Highest mean response length, as a multiple of the base's."""
    max_repetition: float = Field(default=0.1, ge=0, le=1)
    """Highest share of responses that repeat themselves."""
    bounds: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Bounds of single scores, such as `{"collapse.empty" = 0.05}`, in place of those that their probes declare."""
    require_review: bool = False
    """Wait for a reviewer to tag the model version `review=approved` in MLflow."""
    model_name: str = "policy"
    """Name of the registered model."""
    tracking_uri: str = ""
    """MLflow server; empty means SQLite and local files under `run.root`."""
    poll_s: float = Field(default=2.0, gt=0)
    """Seconds between two polls of the registry."""
    confirm_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait in seconds until every replica answers with a released version."""
    canary: CanaryConfig = CanaryConfig()
