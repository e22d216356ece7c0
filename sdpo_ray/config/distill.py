"""The sections under `[distill]`: how an update learns. Defaults are the preset `continual`."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdpo_ray.config.presets import PRESETS, REMOVED_PRESETS
from sdpo_ray.config.section import Section
from sdpo_ray.config.signal import SignalConfig
from sdpo_ray.config.workers import WorkersConfig


class ContextConfig(Section):
    """The contexts x and (x, o) of an interaction, and which tokens of y are scored."""

    template: Literal["online", "offline_code", "paper"] = "online"
    """Wording of the hindsight block, a key of `sdpo_ray.chat.HINDSIGHT_BLOCKS`."""
    max_messages: int | None = Field(default=None, ge=1)
    """Most messages of x besides leading system messages; older ones are left out. None keeps x as it was served."""
    max_prompt_tokens: int | None = Field(default=None, ge=16)
    """Most tokens of x; whole messages are left out, oldest first. None limits x by `policy.max_model_len` only."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of y; interactions with a longer response are not trained on. None sets no limit."""
    max_follow_up_tokens: int = Field(default=512, ge=8)
    """Most tokens of o; a longer follow-up keeps its beginning and its end."""
    truncated: Literal["mask", "train", "drop"] = "mask"
    """Responses that ran into the token limit or were aborted: `mask` counts them in the batch without scoring them,
    `train` scores them, `drop` leaves them out."""
    ignore_first_k: int = Field(default=0, ge=0)
    """Tokens at the start of y that are not scored."""
    text_only: Literal["refuse", "train"] = "refuse"
    """Imported responses without token ids: `train` tokenizes their text, `refuse` leaves them out."""
    redacted: Literal["refuse", "train"] = "refuse"
    """Redacted turns, which have no token ids: `train` tokenizes the redacted text, `refuse` leaves them out."""
    max_copies: int = Field(default=4, ge=1)
    """Most interactions with the same x, y and o that one update trains on."""


class TeacherConfig(Section):
    """The policy that scores y under hindsight."""

    kind: Literal["live", "ema", "frozen", "adapter_off"] = "ema"
    """The current policy; its exponential moving average; the update's parent; or the base beneath the adapter."""
    ema_rate: float = Field(default=0.02, ge=0, le=1)
    """Share of the policy's weights that the average takes over after each step: phi <- (1 - rate) phi + rate theta."""
    baselined: bool = True
    """Compare the teacher's score of (x, o) to its own score of x, so that an empty follow-up has no effect; else to
    the student's. Both are the same for a live teacher."""

    @property
    def scores_prompt(self) -> bool:
        """Whether the teacher is another policy than the student and scores x too."""
        return self.baselined and self.kind != "live"


class DriftConfig(Section):
    """How far from the base the policy may drift during an update."""

    kl_penalty: float = Field(default=0.0, ge=0)
    """Weight of KL(policy || base) in the loss, by the sampled tokens; above 0 the base scores every interaction."""
    num_probes: int = Field(default=32, ge=1)
    """Interactions of the snapshot on which KL(policy || base) is watched."""
    max_kl_to_base: float | None = Field(default=1.0, gt=0)
    """KL(policy || base) in nats a token above which the update stops without a candidate. None does not stop it."""
    min_entropy: float | None = Field(default=None, gt=0)
    """Mean -log p(y) in nats a token below which the update stops without a candidate. None does not stop it."""


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) on all linear layers but the head."""

    rank: int = Field(default=64, ge=0)
    """Rank of the adapter; 0 trains all parameters."""
    alpha: float = Field(default=128, gt=0)
    """The adapter's product is scaled by alpha / rank."""


class DistillConfig(Section):
    """One update."""

    preset: str = "continual"
    """Named values that apply where the run file gives none: `continual`, `paper_online`, `paper_offline`."""
    objective: Literal["sdpo", "sft"] = "sdpo"
    """`sft` raises log p(y|x) of the same interactions whatever the follow-up: the paper's baseline in Table 4."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine to 0."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    batch_size: int = Field(default=32, ge=1)
    """Interactions per optimizer step, over all workers."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the snapshot."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which the gradient is clipped."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW with betas 0.9 and 0.999 and no decay; `adamw_8bit` is that of bitsandbytes and needs a GPU."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    context: ContextConfig = ContextConfig()
    signal: SignalConfig = SignalConfig()
    teacher: TeacherConfig = TeacherConfig()
    drift: DriftConfig = DriftConfig()
    lora: LoraConfig = LoraConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "continual") if isinstance(values, dict) else None
        return _merged(PRESETS[preset], values) if preset in PRESETS else values

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset in REMOVED_PRESETS:
            raise ValueError(f"{preset!r} was removed: {REMOVED_PRESETS[preset]}")
        if preset not in PRESETS:
            raise ValueError(f"one of {', '.join(map(repr, PRESETS))}")
        return preset

    @property
    def shards_teacher(self) -> bool:
        """Whether ZeRO-3 shards the output weights of a teacher that are not the student's."""
        own_weights = not self.lora.rank and self.teacher.kind in ("ema", "frozen")
        return self.workers.zero_stage == 3 and own_weights

    @property
    def sharded_teacher_message(self) -> str:
        """The error for a signal that compares distributions where `shards_teacher` holds."""
        return (
            f"{self.signal.estimator} with a teacher of its own weights needs them whole: lower "
            "workers.zero_stage, or set lora.rank"
        )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for wrong, why in (
            (
                self.teacher.kind == "adapter_off" and not self.lora.rank,
                "teacher.kind 'adapter_off' needs an adapter: set lora.rank",
            ),
            (
                self.signal.estimator in ("topk_reverse_kl", "full_kl") and self.signal.baseline != "none",
                f"signal.baseline {self.signal.baseline!r} belongs to the sampled_token estimator",
            ),
            (
                self.signal.clip is not None and self.signal.compares_distributions,
                "signal.clip bounds scores of sampled tokens; where distributions are compared, set signal.log_mix",
            ),
            (self.signal.compares_distributions and self.shards_teacher, self.sharded_teacher_message),
            (
                (self.workers.min_workers or 1) > self.workers.num_workers,
                "workers.min_workers is more than workers.num_workers",
            ),
            (
                self.workers.offload != "none" and not self.workers.zero_stage,
                "workers.offload needs workers.zero_stage 1, 2 or 3",
            ),
            (
                self.workers.offload == "all" and self.workers.zero_stage != 3,
                "workers.offload 'all' needs workers.zero_stage 3",
            ),
            (
                self.workers.precision == "pure_bfloat16" and self.workers.zero_stage != 0,
                "workers.precision 'pure_bfloat16' needs workers.zero_stage 0",
            ),
            (
                self.workers.precision == "mixed_bfloat16" and not self.workers.zero_stage,
                "workers.precision 'mixed_bfloat16' needs workers.zero_stage 1, 2 or 3: there are the fp32 masters",
            ),
            (
                self.optimizer == "adamw_8bit" and not self.workers.use_gpu,
                "optimizer 'adamw_8bit' needs workers.use_gpu; on a CPU set optimizer = 'adamw'",
            ),
        ):
            if wrong:
                raise ValueError(why)
        return self


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(under.get(name), dict)
        merged[name] = _merged(under[name], value) if both else value
    return merged
