"""How an update learns: the sections under `[distill]`. Defaults are the preset `continual`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sdpo_ray.config.presets import PRESETS
from sdpo_ray.config.section import Section


class ContextConfig(Section):
    """The two contexts of an interaction, x and (x, o), and which tokens of y are scored."""

    template: Literal["online", "offline_code", "paper"] = "online"
    """Wording of the hindsight block; `sdpo_ray.chat.HINDSIGHT`."""
    max_messages: int | None = Field(default=None, ge=1)
    """Messages of x besides a system prompt; older ones are left out. None keeps x as it was served."""
    max_prompt_tokens: int | None = Field(default=None, ge=16)
    """Tokens of x; whole messages are left out from the oldest on. None leaves only `policy.max_model_len`."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Longer answers are refused."""
    max_follow_up_tokens: int = Field(default=512, ge=8)
    """Longer follow-ups keep their beginning and their end."""
    empty_system: bool = False
    """Put an empty system message in front of an x that has none, as the authors' online code does."""
    end_token: Literal["as_sampled", "always"] = "as_sampled"
    """Whether y's end token is there only when it was emitted, or is added where it was not."""
    truncated: Literal["mask", "train", "drop"] = "mask"
    """Answers that ran into the token limit or were broken off: counted in the batch but not scored, learned from, or
    refused."""
    ignore_first_k: int = Field(default=0, ge=0)
    """Response tokens at the start of y that are not scored."""
    text_only: Literal["refuse", "train"] = "refuse"
    """Answers known as text alone, from logs of elsewhere: tokenized here, or refused."""
    redacted: Literal["refuse", "train"] = "refuse"
    """Turns of which something was redacted, and with it their token ids: tokenized here as redacted, or refused."""
    max_copies: int = Field(default=4, ge=1)
    """Interactions with the same x, y and o that one update learns from."""


class SignalConfig(Section):
    """What each token of y is moved by."""

    estimator: Literal["sampled_token", "topk_reverse_kl", "full_kl"] = "sampled_token"
    top_k: int = Field(default=20, ge=1)
    """Tokens of the student's distribution that `topk_reverse_kl` compares one by one; the others are one bucket."""
    baseline: Literal["none", "seq_mean", "ema_scalar", "token_kl"] = "none"
    clip: float | None = Field(default=None, gt=0)
    """Advantages are clamped to [-clip, clip] nats."""
    log_mix: float | None = Field(default=0.9, gt=0, lt=1)
    """a: the teacher becomes a*teacher + (1-a)*student, so that no advantage is under log(1-a) nats."""
    normalize: Literal["seq_mean_token_mean", "token_mean", "token_sum"] = "seq_mean_token_mean"
    """Mean over tokens then sequences; mean over all tokens; sum over tokens, mean over sequences."""
    tis_cap: float | None = Field(default=2.0, ge=1)
    """Cap of each token's truncated importance weight p(learner)/p(sampler). None takes no notice of the sampler."""
    max_staleness: int | None = Field(default=8, ge=0)
    """Answers of a policy more versions older than the parent are refused."""
    staleness_half_life: float | None = Field(default=None, gt=0)
    """An answer's weight halves with every so many versions of age."""
    relevance_probes: int = Field(default=64, ge=0)
    """Interactions of the snapshot whose follow-up is held against a stranger's, for the record; 0 for none."""

    @property
    def compares_distributions(self) -> bool:
        """Whether the teacher's whole distribution is needed, not only its score of the sampled token."""
        return self.estimator != "sampled_token" or self.baseline == "token_kl"


class TeacherConfig(Section):
    """Who scores y under hindsight."""

    kind: Literal["live", "ema", "frozen", "adapter_off"] = "ema"
    """This step's policy; its moving average; the update's parent; the base beneath the adapter."""
    ema_rate: float = Field(default=0.02, ge=0, le=1)
    """phi <- (1 - rate) phi + rate theta after each step."""
    baselined: bool = True
    """Compare the teacher with hindsight to the teacher without it, so that an empty follow-up teaches nothing. A live
    teacher without hindsight is the student itself."""


class DriftConfig(Section):
    """How far from the base the policy may slide while it learns."""

    kl_penalty: float = Field(default=0.0, ge=0)
    """Weight of KL(policy || base) in the loss, by the sampled tokens. Not zero: the base scores every interaction."""
    num_probes: int = Field(default=32, ge=1)
    """Interactions of the snapshot on which KL(policy || base) is watched."""
    max_kl_to_base: float | None = Field(default=1.0, gt=0)
    """Nats a token, over which the run ends without a candidate."""
    min_entropy: float | None = Field(default=None, gt=0)
    """Mean -log p(y) in nats a token, under which the run ends without a candidate."""


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) on all linear layers but the head."""

    rank: int = Field(default=64, ge=0)
    """0 trains all parameters."""
    alpha: float = Field(default=128, gt=0)


class WorkersConfig(Section):
    """Where and in what precision it is computed."""

    num_workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """Fewest workers with which a lost group may go on, where the cluster has shrunk. None waits for all of them."""
    use_gpu: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 1 shards the optimizer's state, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What of it lives in host memory: the optimizer's state (ZeRO 1-3), and parameters too (ZeRO 3)."""
    precision: Literal["float32", "mixed_bfloat16", "pure_bfloat16"] = "float32"
    """`mixed_bfloat16` computes in bfloat16 with fp32 masters; `pure_bfloat16` has none, like the authors' code."""
    max_tokens_per_micro_batch: int = Field(default=4096, ge=64)
    """Tokens of one packed forward pass, both contexts counted alone."""
    logits_mib: int = Field(default=128, ge=1)
    """Logits that exist at a time, in MiB of fp32, whatever the size of the vocabulary."""
    activation_checkpointing: bool = False
    kernels: Literal["auto", "torch"] = "auto"
    """`auto` takes FlashAttention and Liger where a GPU and the packages are there."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints that a lost worker group goes on from."""
    max_failures: int = Field(default=1, ge=0)
    """Lost worker groups that are started again."""


class DistillConfig(Section):
    """One update."""

    preset: Literal[
        "continual", "paper_online", "paper_offline", "official_offline_code", "official_online_code", "live_branch"
    ] = "continual"
    """Named values beneath those of the run file; `sdpo_ray/config/presets.py`."""
    objective: Literal["sdpo", "sft"] = "sdpo"
    """`sft` raises log p(y|x) of the same interactions whatever the user said: the paper's baseline in Table 4."""
    learning_rate: float = Field(default=1e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps in which the rate rises from 0."""
    batch_size: int = Field(default=32, ge=1)
    """Interactions an optimizer step, over all workers."""
    epochs: int = Field(default=1, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW with betas 0.9 and 0.999 and no decay; `adamw_8bit` is bitsandbytes' and needs a GPU."""
    adam_eps: float = Field(default=1e-8, gt=0)
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

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for wrong, why in (
            (
                self.teacher.kind == "adapter_off" and not self.lora.rank,
                "teacher.kind 'adapter_off' needs an adapter: set lora.rank",
            ),
            (
                self.signal.estimator != "sampled_token" and self.signal.baseline != "none",
                f"signal.baseline {self.signal.baseline!r} belongs to the sampled_token estimator",
            ),
            (
                self.signal.clip is not None and self.signal.compares_distributions,
                "signal.clip bounds scores of sampled tokens; where distributions are compared, set signal.log_mix",
            ),
            (
                self.workers.zero_stage == 3
                and not self.lora.rank
                and self.teacher.kind in ("ema", "frozen")
                and self.signal.compares_distributions,
                f"{self.signal.estimator} with a teacher of its own weights needs them whole: lower "
                "workers.zero_stage, or set lora.rank",
            ),
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
