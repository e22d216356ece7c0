"""The section `[serve]`: the engine, its replicas and their limits."""

import re
from ipaddress import ip_address
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sdpo_ray.config.section import Section


class LimitsConfig(Section):
    """Limits of each API key over all replicas; 0 is unlimited. `jobs/keys.py` gives a key limits of its own."""

    requests_per_minute: int = Field(default=0, ge=0)
    """Requests a minute."""
    tokens_per_minute: int = Field(default=0, ge=0)
    """Tokens of prompts and responses a minute."""
    concurrent: int = Field(default=0, ge=0)
    """Requests at a time."""


class AutoscaleConfig(Section):
    """Number of replicas by load."""

    max_replicas: int = Field(default=0, ge=0)
    """Most replicas; `serve.num_replicas` is the fewest. 0 switches autoscaling off."""
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Mean requests per replica above which another is started."""
    upscale_delay_s: float = Field(default=10, ge=0)
    """Seconds of higher load before a replica is started."""
    downscale_delay_s: float = Field(default=300, ge=0)
    """Seconds of lower load before a replica is stopped."""


class ServeConfig(Section):
    """Ray Serve and the vLLM engine."""

    host: str = "127.0.0.1"
    """Address to bind; off loopback, replicas start only if there are API keys (`jobs/keys.py add`)."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to bind."""
    served_name: str = "policy"
    """Model name in clients' requests."""
    num_replicas: int = Field(default=1, ge=1)
    """Replicas of the policy, or the fewest with autoscaling."""
    autoscale: AutoscaleConfig = AutoscaleConfig()
    num_cpus: float = Field(default=0.5, gt=0)
    """Ray's logical CPUs per replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs per replica; 0 serves on the CPU."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which one engine is split; `num_gpus` must be the same number."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Ray's custom resources per replica, to place replicas on the nodes that have them."""
    kv_cache_mib: int = Field(default=64, ge=8)
    """Size of the engine's KV cache in MiB."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Most sequences in one engine step."""
    max_queued: int = Field(default=256, ge=1)
    """Most requests that wait for the engine; further ones are answered 503."""
    tool_parser: str = "hermes"
    """vLLM's parser of tool calls in this policy's responses; "none" parses none."""
    swap: Literal["in_place", "adapter"] = "in_place"
    """How a release is loaded into a running engine: `in_place` loads its whole weights while requests wait; `adapter`
    loads its LoRA adapter over the base under a new name, while older requests finish on theirs."""
    adapters: int = Field(default=0, ge=0)
    """Most LoRA adapters in one batch; 0 switches LoRA off. Others are loaded on demand."""
    max_lora_rank: int = Field(default=64, ge=1)
    """Largest rank of an adapter that is served."""
    max_body_mib: int = Field(default=4, ge=1)
    """Most MiB of a request; larger ones are answered 413."""
    request_timeout_s: float = Field(default=600, gt=0)
    """Most seconds of a request; then it is answered 504, or its stream ends with an error."""
    drain_s: float = Field(default=60, ge=0)
    """Seconds that a stopping replica has to finish its requests."""
    engine_patience_s: float = Field(default=120, gt=0)
    """Seconds without a reply after which an engine counts as hung and its replica is restarted; more than any step or
    load takes."""
    limits: LimitsConfig = LimitsConfig()
    otlp_endpoint: str = ""
    """Receiver of OpenTelemetry traces (OTLP over gRPC), such as `http://collector:4317`; empty sends none."""

    @field_validator("tool_parser")
    @classmethod
    def _name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError("must be the name of one of vLLM's tool parsers, or none")
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
                "tensor_parallel needs as many GPUs: set num_gpus to the same number",
            ),
        ):
            if wrong:
                raise ValueError(why)
        return self

    @property
    def replicas(self) -> dict[str, Any]:
        """Ray Serve options of the users' deployment that may change while it serves."""
        scale = self.autoscale
        # With `several`, replicas share the counters of their limits.
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
        """URL of the users' application, without a path."""
        return f"http://{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the application."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
