"""Bytes that one worker of an update needs, by part, before anything is loaded.

Held all the time, for P trained parameters, b = 4 or 2 bytes of the compute precision, N workers:

    weights     b a parameter; a share of 1/N under ZeRO-3
    masters     4 P / N under ZeRO; none without it
    gradients   b P without ZeRO; 4 P under ZeRO-1, 6 P where it computes in bfloat16; 4 P / N under ZeRO-2 and 3
    optimizer   8 P / N for AdamW (4 P where there are no fp32 masters to follow), 2 P / N in 8 bits
    teacher     4 P for a moving average or a frozen copy; 1/N of that under ZeRO-3
    base head   b a parameter of the output layer, without an adapter

What autograd keeps of a token in a layer of width D, with H of query and K of key heads, F of the feed-forward, from
the modules of transformers as they are (torch.autograd.graph.saved_tensors_hooks shows the same to a hundredth):

    two norms            2 (4 D + b D + b D)        input in fp32, normalised, output
    head norms           (4 + b) (H + K)            Qwen3 alone
    attention            b (2 H + 2 K)              q, k, v, output; b 5 H by SDPA, which has k and v a query head and
                                                    gathers the sequences' outputs in one more tensor
    feed-forward         4 b F                      gate, silu(gate), up, their product
    with LoRA            7 b r more, and no b D, b H, b K of a norm's normalised input: its weight does not learn

Liger's kernels keep less than that. With activation checkpointing a layer keeps b D, and one layer at a time the rest.
"""

from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.model.model_spec import ModelSpec, read_model_spec

_FP32 = 4
_8BIT_ADAMW = 2 + 2 * _FP32 / 256
"""Two moments of a byte, and a scale for every 256 of each; bitsandbytes."""
_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time; its buffer has that size whatever the model's."""
_PREFETCH = 50_000_000
"""Parameters that ZeRO-3 gathers ahead of the layer that runs."""
_SCORED = 2
"""Tensors as large as a chunk's logits that exist at a time where tokens are scored: these, and log-sum-exp's own."""
_COMPARED = 6
"""Such tensors where whole distributions are compared: the student's, the teacher's, and autograd's."""
_MIXED, _MIXED_REFERENCE = 7, 9
"""Such tensors where the two are mixed, without and with the teacher's own view of x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one worker. Made by `estimate`; read by `jobs.distill`."""

    num_parameters: int
    num_trained: int
    weights: int
    adapter: int
    masters: int
    gradients: int
    optimizer: int
    teacher: int
    base_head: int
    """The base's output weights, by which KL to it is watched; the policy's own where those do not learn."""
    buffers: int
    """DeepSpeed's bucket of gradients, and what ZeRO-3 gathers."""
    activations: int
    """Of one packed micro-batch."""
    head: int
    """Hidden states, one chunk of logits, and the output weights' gradient in fp32."""
    teaching: int
    """The teacher in the student's place: its weights as computed with, and one chunk of logits."""
    stepping: int
    """What the optimizer needs for a moment."""
    base: int
    """The run's base and one chunk of logits, before the first step."""
    host: int
    """In the host's memory: what is offloaded, and the weights gathered whole when the candidate is written."""

    @property
    def held(self) -> int:
        """On the device from the first step to the last."""
        states = self.masters + self.gradients + self.optimizer
        return self.weights + self.adapter + states + self.teacher + self.base_head + self.buffers

    @property
    def peak(self) -> int:
        """The most that is on the device at a time."""
        return self.held + max(self.activations + self.head, self.teaching, self.stepping, self.base)


def estimate(shape: Path | ModelSpec, config: DistillConfig, max_model_len: int) -> MemoryEstimate:
    """What each worker needs for updates of a policy of this shape.

    A micro-batch is full, and longer than that where one sequence of `max_model_len` is; all its tokens are scored.
    Raises ConfigError where `shape` is a path without a `config.json` of a dense decoder.
    """
    worker = _Worker(shape if isinstance(shape, ModelSpec) else read_model_spec(shape), config, max_model_len)
    spills, empties = worker.offload != "none", worker.offload == "all"
    weights, adapter, teacher = worker.weights(), worker.adapter(), worker.teacher()
    masters, moments = worker.masters(), worker.moments()
    gradients, host_gradients = worker.gradients()
    offloaded = host_gradients + (masters + moments) * spills + (weights + adapter + teacher) * empties
    return MemoryEstimate(
        num_parameters=worker.shape.num_parameters,
        num_trained=worker.trained,
        weights=0 if empties else weights,
        adapter=0 if empties else adapter,
        masters=0 if spills else masters,
        gradients=gradients,
        optimizer=0 if spills else moments,
        teacher=0 if empties else teacher,
        base_head=0 if config.lora.rank else worker.compute * worker.shape.num_head_parameters,
        buffers=worker.buffers(),
        activations=worker.activations(),
        head=worker.head(),
        teaching=worker.teaching(),
        stepping=0 if spills else _FP32 * worker.part,
        base=worker.compute * worker.shape.num_parameters + _SCORED * worker.chunk,
        host=offloaded + _FP32 * worker.trained * (2 if config.teacher.kind == "ema" else 1),
    )


class _Worker:
    """Bytes of each part; the formulas are the module's."""

    def __init__(self, shape: ModelSpec, config: DistillConfig, max_model_len: int) -> None:
        self.shape, self._config, self._max_model_len = shape, config, max_model_len
        workers = config.workers
        self.offload, self._stage = workers.offload, workers.zero_stage
        self.compute = _FP32 if workers.precision == "float32" else 2
        self._rank = config.lora.rank
        self.trained = shape.num_adapter_parameters(self._rank) if self._rank else shape.num_parameters
        self.part = self.trained // workers.num_workers if self._stage else self.trained
        """What this worker's optimizer updates."""
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
        """On the device and in the host's memory."""
        whole = self.compute * self.trained
        if not self._stage:
            return whole, 0
        if self._stage == 1:
            # It reduces them after the last micro-batch; its optimizer for bfloat16 sums them in fp32 beside them.
            device = _FP32 * self.trained + (whole if self.compute != _FP32 else 0)
        else:
            device = _FP32 * self.part
        if self.offload == "none":
            return device, 0
        # For a CPU's optimizer they are kept twice, and under ZeRO-1 and 2 there is a share of weights to send back.
        host = (2 * _FP32 + (self.compute if self._stage < 3 else 0)) * self.part
        return device if self._stage == 1 else 0, host

    def buffers(self) -> int:
        own = self._stage == 1 and self.compute != _FP32 and self.offload == "none"
        if not self._stage or own:
            return 0
        gathered = min(self.shape.num_head_parameters + _PREFETCH, self.shape.num_parameters)
        return self.compute * (_BUCKET + (gathered if self._stage == 3 else 0))

    def activations(self) -> int:
        shape, kept = self.shape, self._layer() * self._tokens
        # The last norm, and the rotations' sines and cosines.
        rest = self._tokens * (shape.hidden * (_FP32 + 2 * self.compute) + 2 * self.compute * shape.head_dim)
        if self._config.workers.activation_checkpointing:
            return shape.num_layers * self._tokens * self.compute * shape.hidden + kept + rest
        return shape.num_layers * kept + rest

    def head(self) -> int:
        rows = 2 * self._tokens * self.compute * self.shape.hidden
        weights = _FP32 * self.shape.num_head_parameters
        gradient = 0 if self._rank else weights
        if self.compute != _FP32 and not (self._rank and self._config.workers.use_gpu):
            # A GPU makes each chunk's product in fp32 before it is added; a CPU has the weights in fp32 instead.
            gradient += weights
        if not self._compares:
            return rows + _SCORED * self.chunk + gradient
        mixed = _MIXED if self._live else _MIXED_REFERENCE
        tensors = _COMPARED if self._config.signal.log_mix is None else mixed
        return rows + tensors * self.chunk + gradient + self._lessons()

    def teaching(self) -> int:
        weights = 0 if self._live or self.compute == _FP32 else self.compute * self.trained // self._shards
        return weights + self._layer() * self._tokens + _SCORED * self.chunk

    def _layer(self) -> int:
        """What autograd keeps of one token in one layer."""
        shape, b, learns = self.shape, self.compute, not self._rank
        flash = self._config.workers.use_gpu and b != _FP32
        norms = 2 * shape.hidden * (_FP32 + b + b * learns)
        heads = (shape.query + shape.key) * (_FP32 + b * learns) if shape.normed_heads else 0
        attention = b * (2 * shape.query + 2 * shape.key if flash else 5 * shape.query)
        factors = b * self._rank * len(shape.linears) // shape.num_layers
        return norms + heads + attention + 4 * b * shape.feed_forward + factors

    @property
    def _compares(self) -> bool:
        """Whole distributions are compared, so the teacher's hidden states are kept."""
        return self._config.objective == "sdpo" and self._config.signal.compares_distributions

    def _lessons(self) -> int:
        """The teacher's hidden states of a step's answers; without hindsight too where it is another policy."""
        answers = -(-self._config.batch_size // self._config.workers.num_workers)
        longest = min(self._config.context.max_response_tokens or self._max_model_len, self._max_model_len)
        return (1 if self._live else 2) * answers * longest * self.compute * self.shape.hidden
