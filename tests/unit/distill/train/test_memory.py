"""The memory estimate of a worker against what torch and peft allocate."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import PROMPT, Example
from sdpo_ray.distill.data.packing import rows
from sdpo_ray.distill.loss.step import StepPolicy, run_step
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model import lora_adapter
from sdpo_ray.distill.model.load import checkpoint_activations, load_packed
from sdpo_ray.distill.model.model_spec import ModelSpec, read_model_spec
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.distill.train.memory import MemoryEstimate, estimate
from sdpo_ray.errors import ConfigError
from tests.support.paths import REPOSITORY

SHAPES = REPOSITORY / "jobs" / "recipes" / "shapes"
TOKENS = 512
PAPER: dict[str, Any] = {"preset": "paper_online"}


def config(changes: dict[str, Any] | None = None, **workers: Any) -> DistillConfig:
    """The paper's update with micro-batches of TOKENS."""
    return DistillConfig(**PAPER | (changes or {}), workers={"max_tokens_per_micro_batch": TOKENS} | workers)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 in which activations and logits outweigh the rest."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("policy")
    shape = Qwen3Config(
        vocab_size=3000,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=176,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(shape).save_pretrained(path)
    return path


def examples(num_tokens: int) -> tuple[Example, ...]:
    """Four of one length, half of it the answer; the follow-up is one token."""
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3000) for _ in range(n))

    half = num_tokens // 8
    return tuple(
        Example(
            interaction_id=f"e{index}",
            prompt_ids=(prompt := ids(half)),
            hindsight_ids=prompt[1:] + ids(1),
            response_ids=ids(half),
            first_scored=0,
            sampler_logprobs=(),
            temperature=1.0,
            weight=1.0,
        )
        for index in range(4)
    )


def model_for(policy: Path, config: DistillConfig) -> Any:
    """The model as the learner loads it."""
    model = load_packed(policy, "float32" if config.workers.precision == "float32" else "bfloat16")
    if config.lora.rank:
        lora_adapter.inject(model, config.lora, parent=policy, base=policy, seed=0)
    if config.workers.activation_checkpointing:
        checkpoint_activations(model, reentrant=False)
    return model


def test_parameters_are_counted_without_weights():
    small, large = read_model_spec(SHAPES / "qwen3_4b.json"), read_model_spec(SHAPES / "qwen3_8b.json")
    assert (small.num_parameters, large.num_parameters) == (4_022_468_096, 8_190_735_360)
    assert (small.query, small.key, small.num_head_parameters) == (4096, 1024, 151_936 * 2560)


def test_adapters_are_counted_as_peft_makes_them(policy: Path):
    model = model_for(policy, config({"lora": {"rank": 8}}))
    made = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert read_model_spec(policy).num_adapter_parameters(8) == made


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("precision", ["float32", "pure_bfloat16"])
def test_activations_are_what_autograd_keeps_for_the_backward_pass(policy: Path, precision: str, rank: int):
    update = config({"lora": {"rank": rank}}, precision=precision)
    kept = saved_bytes(model_for(policy, update))
    assert estimate(policy, update, 16).activations == pytest.approx(kept, rel=0.05)


def test_checkpointed_activations_are_one_input_a_layer_and_one_layer(policy: Path):
    update = config(activation_checkpointing=True)
    found = estimate(policy, update, 16).activations
    once = estimate(policy, config(), 16).activations / 4
    assert found == pytest.approx(saved_bytes(model_for(policy, update)) + once, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ({}, {"logits_mib": 1}),
        ({"signal": {"estimator": "topk_reverse_kl"}, "teacher": {"kind": "ema"}}, {"logits_mib": 3}),
        (
            {"signal": {"estimator": "topk_reverse_kl", "log_mix": 0.9}, "teacher": {"kind": "ema"}},
            {"logits_mib": 3},
        ),
        ({"lora": {"rank": 8}}, {"logits_mib": 1}),
    ],
    ids=["sampled_token", "topk_reverse_kl", "mixed", "lora"],
)
def test_the_peak_of_a_whole_step_is_the_estimate(policy: Path, changes: dict[str, Any], workers: dict[str, Any]):
    update = config({"batch_size": 4, **changes}, **workers)
    model = model_for(policy, update)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    teacher = Teacher(update.teacher, trained)
    live = update.teacher.kind == "live"
    step = StepPolicy(
        run=PackedLM(model),
        teacher=teacher.weights,
        baselined=not live,
        own_head=not live and not update.lora.rank,
        device=torch.device("cpu"),
    )
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    measured = peak_bytes(lambda: run_step([examples(TOKENS)], step, update))
    estimated = estimate(policy, update, TOKENS // 4)
    assert estimated.activations + estimated.head == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "workers", "bytes_a_parameter"),
    [
        # fp32 masters, fp32 Adam, a bfloat16 copy: 16 to 18 with gradients summed in bfloat16 or fp32.
        ({}, {"precision": "mixed_bfloat16", "zero_stage": 2}, 2 + 4 + 4 + 8),
        # About 10 with 8-bit Adam and bfloat16 gradients; summed in fp32 they are two more.
        ({"optimizer": "adamw_8bit"}, {"precision": "mixed_bfloat16", "zero_stage": 2, "use_gpu": True}, 2 + 4 + 4 + 2),
        # The authors': about 6.
        ({"optimizer": "adamw_8bit"}, {"precision": "pure_bfloat16", "use_gpu": True}, 2 + 2 + 2),
        # A moving average, in fp32: 4 on top.
        ({"teacher": {"kind": "ema"}}, {"precision": "mixed_bfloat16", "zero_stage": 2}, 18 + 4),
    ],
)
def test_bytes_a_parameter_are_those_of_the_reference(
    changes: dict[str, Any], workers: dict[str, Any], bytes_a_parameter: float
):
    found = estimate(SHAPES / "qwen3_8b.json", config(changes, **workers), 2048)
    held = found.held - found.buffers - found.base_head
    assert held / 8_190_735_360 == pytest.approx(bytes_a_parameter, abs=0.04)


def test_lora_holds_little_more_than_the_base():
    workers = {"precision": "mixed_bfloat16", "zero_stage": 2}
    found = estimate(SHAPES / "qwen3_8b.json", config({"lora": {"rank": 64}}, **workers), 2048)
    assert found.weights == 2 * 8_190_735_360
    assert found.held - found.buffers - found.weights == pytest.approx(18 * found.num_trained, rel=1e-6)
    assert found.num_trained == 36 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))


def of(stage: int, *, num_workers: int = 4, offload: str = "none") -> MemoryEstimate:
    asked = {"precision": "mixed_bfloat16", "zero_stage": stage, "num_workers": num_workers, "offload": offload}
    return estimate(_SHAPE, config({"teacher": {"kind": "ema"}}, **asked), 2048)


_SHAPE = ModelSpec(
    num_parameters=1_000_000,
    num_layers=2,
    hidden=64,
    num_heads=4,
    num_key_heads=2,
    head_dim=16,
    feed_forward=128,
    vocabulary=1000,
    normed_heads=True,
    linears=((64, 64),),
)


def test_each_zero_stage_shards_one_part_more():
    parts = {
        stage: (of(stage).weights, of(stage).gradients, of(stage).masters, of(stage).optimizer) for stage in (1, 2, 3)
    }
    assert parts == {
        1: (2_000_000, 6_000_000, 1_000_000, 2_000_000),
        2: (2_000_000, 1_000_000, 1_000_000, 2_000_000),
        3: (500_000, 1_000_000, 1_000_000, 2_000_000),
    }
    assert [of(stage).teacher for stage in (1, 2, 3)] == [4_000_000, 4_000_000, 1_000_000]


def test_offloaded_parts_are_in_host_memory():
    kept, spilled, emptied = of(3), of(3, offload="optimizer"), of(3, offload="all")
    moved = kept.held - spilled.held
    assert moved == kept.masters + kept.gradients + kept.optimizer
    # The CPU optimizer needs one more fp32 gradient.
    assert spilled.host - kept.host == moved + 1_000_000
    assert emptied.held == emptied.buffers + emptied.base_head
    assert emptied.host - spilled.host == kept.weights + kept.teacher


def test_a_missing_shape_or_one_that_is_not_a_dense_decoder_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no .*config\.json: set policy\.base .* or policy\.shape"):
        read_model_spec(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_model_spec(tmp_path)
    file.write_text('{"model_type": "nothing"}')
    with pytest.raises(ConfigError, match="not of a causal language model"):
        read_model_spec(tmp_path)
    file.write_text('{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}')
    with pytest.raises(ConfigError, match="dense decoders with gated feed-forward"):
        read_model_spec(tmp_path)
    file.write_text('{"model_type": "qwen3_moe", "num_hidden_layers": 1, "hidden_size": 64, "num_experts": 2}')
    with pytest.raises(ConfigError, match="dense decoders with gated feed-forward"):
        read_model_spec(tmp_path)


def saved_bytes(model: Any) -> int:
    """Bytes that a forward pass keeps for its backward pass, without parameters, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = PackedLM(model)(rows(examples(TOKENS), PROMPT), lambda hidden_ND, weight_VD: hidden_ND)
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch allocates at a time during `call`, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events: list[Any] = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
