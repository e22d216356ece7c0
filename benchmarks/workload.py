"""Models of Qwen3's shape with random weights, and batches of random token ids.

Both follow from a seed, so that every process makes the same ones; there is no tokenizer and no download. Lengths are
log-normal: prompts with a median of 600 tokens and at most 2000, responses with a median of 300 and at most 1024, and
a hindsight block of 80. `scale` multiplies all of these, so that a CPU measures the same proportions.
"""

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo_ray.distill.data.example import Example

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Environment of every process: one thread, no downloads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen3 model."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int = 151_936
    tied: bool = True


SHAPES = {
    "smoke": Shape(hidden=64, layers=2, intermediate=192, heads=4, key_heads=2, head_dim=16, vocabulary=2_000),
    "tiny": Shape(hidden=256, layers=4, intermediate=768, heads=4, key_heads=2, head_dim=64),
    "qwen3-4b": Shape(hidden=2560, layers=36, intermediate=9728, heads=32, key_heads=8, head_dim=128),
    "qwen3-8b": Shape(hidden=4096, layers=36, intermediate=12288, heads=32, key_heads=8, head_dim=128, tied=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One measurement, the same for every implementation."""

    shape: Shape
    batch_size: int
    scale: float
    spread: float
    """Sigma of the log-normal lengths; 0 makes all sequences equally long, so that nothing is padded."""
    seed: int
    device: Literal["cpu", "cuda"]
    lora_rank: int
    """0 trains all parameters."""
    max_tokens: int
    """Of one micro-batch of ours."""
    logits_mib: int
    peer_micro_batch: int
    """Sequences of one micro-batch of the peers."""


def batch(work: Workload) -> list[Example]:
    """The token ids of one step."""
    rng = random.Random(work.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(work.shape.vocabulary) for _ in range(count))

    def length(median: int, most: int) -> int:
        drawn = min(median * math.exp(rng.gauss(0, work.spread)), most)
        return max(1, round(drawn * work.scale))

    made = []
    for index in range(work.batch_size):
        prompt = ids(length(600, 2000))
        made.append(
            Example(
                interaction_id=f"{index:05d}",
                prompt_ids=prompt,
                hindsight_ids=prompt + ids(max(1, round(80 * work.scale))),
                response_ids=ids(length(300, 1024)),
                first_scored=0,
                sampler_logprobs=(),
                temperature=1.0,
                weight=1.0,
            )
        )
    return made


def model(work: Workload, *, exact: bool = False) -> Any:
    """The policy: fp32 on a CPU, bf16 on a GPU; `exact` is the same weights in float64, or fp32 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shape, cuda = work.shape, work.device == "cuda"
    config = Qwen3Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
    )
    torch.manual_seed(work.seed)
    with torch.device(work.device):
        made = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if cuda else torch.float32, attn_implementation="sdpa"
        ).eval()
        if work.lora_rank:
            from peft import LoraConfig, inject_adapter_in_model

            # An untouched adapter is 0 times something, and half of its gradient 0.
            rank = LoraConfig(r=work.lora_rank, target_modules="all-linear", init_lora_weights=False)
            inject_adapter_in_model(rank, made)
    if exact:
        made = made.to(torch.float32 if cuda else torch.float64)
    return made


def trained(policy: Any) -> list[Any]:
    """The parameters that learn, in an order that every process shares."""
    return [each for each in policy.parameters() if each.requires_grad]


def useful_flops(work: Workload, examples: Sequence[Example]) -> float:
    """What the two passes of SDPO cost at least: no padding, output layer at responses alone, causal attention.

    The teacher's pass is one forward, the student's three; with an adapter two, for the weights beneath it have no
    gradient. 2 flops a parameter and token; attention 4 a pair of positions and head dimension.
    """
    shape = work.shape
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.key_heads)
    body = 2 * shape.layers * (attention + 3 * shape.hidden * shape.intermediate)
    head = 2 * shape.hidden * shape.vocabulary
    pair = 4 * shape.layers * shape.heads * shape.head_dim
    passes = 2 if work.lora_rank else 3

    def forward(context: int, response: int) -> float:
        length = context + response
        return float(body * length + head * response + pair * length * (length + 1) // 2)

    return sum(
        forward(len(each.hindsight_ids), len(each.response_ids))
        + passes * forward(len(each.prompt_ids), len(each.response_ids))
        for each in examples
    )
