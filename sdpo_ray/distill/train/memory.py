"""Bytes that one worker of an update needs, by part, estimated before anything is loaded.

Held throughout, for P trained parameters, b = 4 or 2 bytes of the compute precision, N workers:

    weights     b a parameter; a share of 1/N under ZeRO-3
    masters     4 P / N under ZeRO; none without it
    gradients   b P without ZeRO; 4 P under ZeRO-1, 6 P where that computes in bfloat16; 4 P / N under ZeRO-2 and 3
    optimizer   8 P / N for AdamW (4 P where there are no fp32 masters), 2 P / N in 8 bits
    teacher     4 P for a moving average or a frozen copy; 1/N of that under ZeRO-3
    base head   b a parameter of the output layer, without an adapter

What autograd keeps of one token in a layer of width D, with query heads of total width H, key heads of total width K
and a feed-forward width F, from the modules of transformers 5.19 (torch.autograd.graph.saved_tensors_hooks agrees to 1
%):

    two norms            2 (4 D + b D + b D)        input in fp32, normalised, output
    head norms           (4 + b) (H + K)            Qwen3 alone
    attention            b (2 H + 2 K)              q, k, v, output; b 5 H by SDPA, which repeats k and v for each query
                                                    head and concatenates the sequences' outputs in one more tensor
    feed-forward         4 b F                      gate, silu(gate), up, their product
    with LoRA            7 b r more, and no b D, b H, b K of a norm's normalised input: its weight is not trained

Liger's kernels keep less. With activation checkpointing every layer keeps b D, and one layer at a time the rest.
"""

from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.model.model_spec import ModelSpec, read_model_spec
from sdpo_ray.distill.signals.registry import signal_of

_FP32 = 4
_8BIT_ADAMW = 2 + 2 * _FP32 / 256
"""Two moments of a byte each, and a scale for every 256 of each, as in bitsandbytes."""
_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time; the buffer has this size whatever the model's."""
_PREFETCH = 50_000_000
"""Parameters that ZeRO-3 gathers ahead of the layer that runs."""
_SCORED = 2
"""Tensors as large as a chunk's logits that exist at a time in scoring: the logits, and log-sum-exp's copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one worker. Made by `estimate`; read by `memory_report`."""

    num_parameters: int
    num_trained: int
    weights: int
    adapter: int
    masters: int
    gradients: int
    optimizer: int
    teacher: int
    base_head: int
    """The base's output weights, for the KL monitor; 0 where the policy's own are the same and are not trained."""
    buffers: int
    """DeepSpeed's gradient bucket, and the parameters that ZeRO-3 gathers."""
    activations: int
    """Of one packed micro-batch, for the backward pass."""
    head: int
    """Hidden states, tensors of one chunk of logits, and the output weights' gradient in fp32."""
    teaching: int
    """While the teacher scores: its weights in the compute precision, one layer, and one chunk of logits."""
    stepping: int
    """While the optimizer steps: its temporary tensors."""
    base: int
    """While the base scores, before the first step: its weights and one chunk of logits."""
    host: int
    """In host memory: what is offloaded, and the weights gathered whole when the candidate is written."""

    @property
    def held(self) -> int:
        """Bytes on the device from the first step to the last."""
        states = self.masters + self.gradients + self.optimizer
        return self.weights + self.adapter + states + self.teacher + self.base_head + self.buffers

    @property
    def peak(self) -> int:
        """The most bytes on the device at a time."""
        return self.held + max(self.activations + self.head, self.teaching, self.stepping, self.base)


def estimate(shape: Path | ModelSpec, config: DistillConfig, max_model_len: int) -> MemoryEstimate:
    """What each worker needs for updates of a policy of this shape.

    Assumes full micro-batches, of `max_model_len` tokens where that is more, all of whose tokens are scored. Raises
    ConfigError where `shape` is a path without a `config.json` of a dense decoder, or the signal cannot be constructed.
    """
    worker = _Worker(shape if isinstance(shape, ModelSpec) else read_model_spec(shape), config, max_model_len)
    offloads, offloads_all = worker.offload != "none", worker.offload == "all"
    weights, adapter, teacher = worker.weights(), worker.adapter(), worker.teacher()
    masters, moments = worker.masters(), worker.moments()
    gradients, host_gradients = worker.gradients()
    offloaded = host_gradients + (masters + moments) * offloads + (weights + adapter + teacher) * offloads_all
    return MemoryEstimate(
        num_parameters=worker.shape.num_parameters,
        num_trained=worker.trained,
        weights=0 if offloads_all else weights,
        adapter=0 if offloads_all else adapter,
        masters=0 if offloads else masters,
        gradients=gradients,
        optimizer=0 if offloads else moments,
        teacher=0 if offloads_all else teacher,
        base_head=0 if config.lora.rank else worker.compute * worker.shape.num_head_parameters,
        buffers=worker.buffers(),
        activations=worker.activations(),
        head=worker.head(),
        teaching=worker.teaching(),
        stepping=0 if offloads else _FP32 * worker.part,
        base=worker.compute * worker.shape.num_parameters + _SCORED * worker.chunk,
        host=offloaded + _FP32 * worker.trained * (2 if config.teacher.kind == "ema" else 1),
    )


class _Worker:
    """Bytes of each part, by the formulas in the module's docstring."""

    def __init__(self, shape: ModelSpec, config: DistillConfig, max_model_len: int) -> None:
        self.shape, self._config, self._max_model_len = shape, config, max_model_len
        self._signal = signal_of(config)
        workers = config.workers
        self.offload, self._stage = workers.offload, workers.zero_stage
        self.compute = _FP32 if workers.precision == "float32" else 2
        self._rank = config.lora.rank
        self.trained = shape.num_adapter_parameters(self._rank) if self._rank else shape.num_parameters
        self.part = self.trained // workers.num_workers if self._stage else self.trained
        """Parameters that this worker's optimizer updates."""
        self._shards = workers.num_workers if self._stage == 3 else 1
        self._tokens = max(workers.max_tokens_per_micro_batch, max_model_len)
        self.chunk = min(workers.logits_mib * 2**20, _FP32 * self._tokens * shape.vocabulary)
        self._live = config.teacher.kind == "live"

    def weights(self) -> int:
        return self.compute * self.shape.num_parameters // self._shards

    def adapter(self) -> int:
        return self.compute * self.trained // self._shards if self._rank else 0

    def teacher(self) -> int:
        return 0 if self._live else _FP32 * self.trained // self._shards

    def masters(self) -> int:
        return _FP32 * self.part if self._stage else 0

    def moments(self) -> int:
        if self._config.optimizer == "adamw_8bit":
            return int(_8BIT_ADAMW * self.part)
        return 2 * (2 if self._config.workers.precision == "pure_bfloat16" else _FP32) * self.part

    def gradients(self) -> tuple[int, int]:
        """Bytes on the device and in host memory."""
        whole = self.compute * self.trained
        if not self._stage:
            return whole, 0
        if self._stage == 1:
            # ZeRO-1 reduces them after the last micro-batch; its bfloat16 optimizer sums them in fp32 beside them.
            device = _FP32 * self.trained + (whole if self.compute != _FP32 else 0)
        else:
            device = _FP32 * self.part
        if self.offload == "none":
            return device, 0
        # A CPU optimizer keeps them twice, and under ZeRO-1 and 2 there is a share of weights to send back.
        host = (2 * _FP32 + (self.compute if self._stage < 3 else 0)) * self.part
        return device if self._stage == 1 else 0, host

    def buffers(self) -> int:
        without_bucket = self._stage == 1 and self.compute != _FP32 and self.offload == "none"
        if not self._stage or without_bucket:
            return 0
        gathered = min(self.shape.num_head_parameters + _PREFETCH, self.shape.num_parameters)
        return self.compute * (_BUCKET + (gathered if self._stage == 3 else 0))

    def activations(self) -> int:
        shape, kept = self.shape, self._layer() * self._tokens
        # The last norm, and the rotary sines and cosines.
        rest = self._tokens * (shape.hidden * (_FP32 + 2 * self.compute) + 2 * self.compute * shape.head_dim)
        if self._config.workers.activation_checkpointing:
            return shape.num_layers * self._tokens * self.compute * shape.hidden + kept + rest
        return shape.num_layers * kept + rest

    def head(self) -> int:
        rows = 2 * self._tokens * self.compute * self.shape.hidden
        weights = _FP32 * self.shape.num_head_parameters
        gradient = 0 if self._rank else weights
        if self.compute != _FP32 and not (self._rank and self._config.workers.use_gpu):
            # A GPU computes each chunk's product in fp32 before it is added; a CPU has the weights in fp32 instead.
            gradient += weights
        return rows + self._signal.num_chunk_tensors * self.chunk + gradient + self._teacher_scores()

    def teaching(self) -> int:
        weights = 0 if self._live or self.compute == _FP32 else self.compute * self.trained // self._shards
        return weights + self._layer() * self._tokens + _SCORED * self.chunk

    def _layer(self) -> int:
        """Bytes that autograd keeps of one token in one layer."""
        shape, b, learns = self.shape, self.compute, not self._rank
        flash = self._config.workers.use_gpu and b != _FP32
        norms = 2 * shape.hidden * (_FP32 + b + b * learns)
        heads = (shape.query + shape.key) * (_FP32 + b * learns) if shape.normed_heads else 0
        attention = b * (2 * shape.query + 2 * shape.key if flash else 5 * shape.query)
        factors = b * self._rank * len(shape.linears) // shape.num_layers
        return norms + heads + attention + 4 * b * shape.feed_forward + factors

    def _teacher_scores(self) -> int:
        """The teacher's hidden states of a step's responses, per context; its log-probs alone are not counted."""
        if not self._signal.compares_distributions:
            return 0
        contexts = self._signal.teacher_contexts(scores_prompt=self._config.teacher.scores_prompt)
        responses = -(-self._config.batch_size // self._config.workers.num_workers)
        longest = min(self._config.context.max_response_tokens or self._max_model_len, self._max_model_len)
        return len(contexts) * responses * longest * self.compute * self.shape.hidden
