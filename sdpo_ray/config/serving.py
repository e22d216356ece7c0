"""Serving's sections of a run file: the engine, its replicas, limits, trials of a candidate, personal policies."""

import re
from ipaddress import ip_address
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sdpo_ray.config.section import Section


class LimitsConfig(Section):
    """What one API key may use, over all replicas; 0 for any amount. `jobs/keys.py` gives a key limits of its own."""

    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0)
    """Tokens of prompts and responses."""
    concurrent: int = Field(default=0, ge=0)
    """Requests at once."""


class AutoscaleConfig(Section):
    """How many replicas there are, by load."""

    max_replicas: int = Field(default=0, ge=0)
    """`serve.num_replicas` is the fewest; 0 keeps exactly that many."""
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests in one replica at which another is started."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)


class ServeConfig(Section):
    """Ray Serve and the vLLM engine."""

    host: str = "127.0.0.1"
    """Anywhere off loopback, there must be keys of the API (`jobs/keys.py add`), or nothing starts."""
    port: int = Field(default=8000, ge=0, le=65535)
    served_name: str = "policy"
    """The model name clients ask for."""
    num_replicas: int = Field(default=1, ge=1)
    autoscale: AutoscaleConfig = AutoscaleConfig()
    num_cpus: float = Field(default=0.5, gt=0)
    """Ray's logical CPUs a replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs a replica; 0 serves on the CPU."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which one engine is split; `num_gpus` is the same number."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Ray's custom resources that a replica asks for, to place it on nodes that have them."""
    kv_cache_mib: int = Field(default=64, ge=8)
    max_num_seqs: int = Field(default=64, ge=1)
    max_queued: int = Field(default=256, ge=1)
    """Requests waiting for the engine before it answers 503."""
    tool_parser: str = "hermes"
    """vLLM's parser of tool calls in this policy's answers; "none" answers tools with text alone."""
    swap: Literal["in_place", "adapter"] = "in_place"
    """How a release reaches a running engine: its whole weights, while requests wait; or its LoRA adapter over the base
    under a name of its own, while older requests finish on theirs."""
    adapters: int = Field(default=0, ge=0)
    """LoRA adapters that one batch may mix; 0 switches LoRA off. Others are paged in on demand."""
    max_lora_rank: int = Field(default=64, ge=1)
    """Largest rank of an adapter that is served."""
    max_body_mib: int = Field(default=4, ge=1)
    """Larger requests are refused with 413."""
    request_timeout_s: float = Field(default=600, gt=0)
    """A request that takes longer is ended with 504, a stream with an error."""
    drain_s: float = Field(default=60, ge=0)
    """How long a replica that is stopped goes on with what it has begun."""
    engine_patience_s: float = Field(default=120, gt=0)
    """An engine that answers nothing for so long hangs: its replica is started anew. No step or load takes longer."""
    limits: LimitsConfig = LimitsConfig()
    otlp_endpoint: str = ""
    """Where OpenTelemetry traces go (OTLP over gRPC), such as `http://collector:4317`; empty sends none."""

    @field_validator("tool_parser")
    @classmethod
    def _name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError("the name of one of vLLM's tool parsers, or none")
        return name

    @model_validator(mode="after")
    def _fit_together(self) -> "ServeConfig":
        for wrong, why in (
            (self.swap == "adapter" and not self.adapters, "swap 'adapter' needs LoRA: set adapters to 2 or more"),
            (
                self.autoscale.max_replicas and self.autoscale.max_replicas < self.num_replicas,
                "autoscale.max_replicas is less than num_replicas",
            ),
            (
                self.tensor_parallel > 1 and self.num_gpus != self.tensor_parallel,
                "tensor_parallel takes as many GPUs: set num_gpus to the same number",
            ),
        ):
            if wrong:
                raise ValueError(why)
        return self

    @property
    def replicas(self) -> dict[str, Any]:
        """How many replicas the users' deployment has, in Ray Serve's words: what may change while they serve."""
        scale = self.autoscale
        # Replicas that are told so share the counting of limits.
        several = {"user_config": {"several": self.num_replicas > 1 or scale.max_replicas > 1}}
        if not scale.max_replicas:
            return {"num_replicas": self.num_replicas, **several}
        autoscaling = {
            "min_replicas": self.num_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
        return {"autoscaling_config": autoscaling, **several}

    @property
    def url(self) -> str:
        """Where the users' application answers, without a path."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class CanaryConfig(Section):
    """What a candidate that passed the gate still has to show among users, before it is promoted.

    Needs the application `canary`, an engine of its own: `--set promote.canary.mode=canary` deploys it.
    """

    mode: Literal["off", "shadow", "canary"] = "off"
    """`canary` answers a share of conversations; `shadow` answers copies of them, which nobody sees."""
    share: float = Field(default=0.1, gt=0, le=0.5)
    """Of conversations; each stays with one policy."""
    min_answers: int = Field(default=200, ge=1)
    """Conversations in which users reacted to the candidate, in shadow the copies it answered, after which it is
    promoted, if nothing was found against it."""
    max_hours: float = Field(default=24, gt=0)
    """With fewer answers than that by then, it is held."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a candidate which is no worse is rolled back, however often one looks."""
    max_slower: float = Field(default=1.5, ge=1)
    """Seconds a token of the candidate's answers, against the champion's, that are still no breach."""


class PersonalConfig(Section):
    """Personal policies: a LoRA adapter over the shared policy for one user or tenant. Needs `serve.adapters`."""

    min_interactions: int = Field(default=32, ge=1)
    """Without so many of a user nothing is learned; with so many new ones it is learned again."""
    snapshot_size: int = Field(default=256, ge=1)
    """The newest of them that one update learns from."""
    max_age_versions: int = Field(default=8, ge=0)
    """Answers of policies this many versions older than the champion are left out."""
    held_out: float = Field(default=0.25, gt=0, lt=1)
    """Share of a user's conversations on which the adapter is judged, and not trained."""
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=8, ge=1)
    epochs: int = Field(default=2, ge=1)
    min_gain: float = Field(default=0.0, ge=0)
    """Nats a token by which the adapter must come closer, on what was held out, to what the shared policy says once it
    has read the follow-up: the low end of the interval."""
