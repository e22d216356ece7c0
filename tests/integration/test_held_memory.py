"""Memory that a learner holds under DeepSpeed, byte for byte, against the estimate made before anything is loaded."""

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from tests.support.gloo_workers import examples

pytestmark = pytest.mark.integration

_MIXED = {"precision": "mixed_bfloat16", "num_workers": 2}
_CASES: dict[str, DistillConfig] = {
    name: DistillConfig(preset="paper_online", batch_size=8, **values)  # type: ignore[arg-type]
    for name, values in {
        "zero-0, a moving average": {"teacher": {"kind": "ema"}, "workers": {"num_workers": 2}},
        "zero-1": {"workers": _MIXED | {"zero_stage": 1}},
        "zero-2, a moving average": {"teacher": {"kind": "ema"}, "workers": _MIXED | {"zero_stage": 2}},
        "zero-2, an adapter": {"lora": {"rank": 8}, "workers": _MIXED | {"zero_stage": 2}},
        "zero-2, offloaded": {"workers": _MIXED | {"zero_stage": 2, "offload": "optimizer"}},
        "zero-3, a frozen teacher": {"teacher": {"kind": "frozen"}, "workers": _MIXED | {"zero_stage": 3}},
        "zero-3, all offloaded": {"workers": _MIXED | {"zero_stage": 3, "offload": "all"}},
    }.items()
}


def test_a_learner_holds_the_estimated_memory(tmp_path: Path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=256,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(shape).save_pretrained(tmp_path / "policy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, tmp_path), nprocs=2)
    measured = torch.load(tmp_path / "measured.pt")
    said = {name: _said(tmp_path / "policy", config) for name, config in _CASES.items()}
    assert measured == {name: pytest.approx(each, rel=0.04) for name, each in said.items()}


def _said(policy: Path, config: DistillConfig) -> int:
    """Estimated bytes on device and host between two steps, without a base. On a CPU both are the same memory."""
    from sdpo_ray.distill.train.memory import estimate

    found = estimate(policy, config, 64)
    written = 4 * found.num_trained * (2 if config.teacher.kind == "ema" else 1)
    # ZeRO-3 holds its bucket of gradients all the time, and has released the layers that it gathered.
    bucket = 2 * 500_000_000 if config.workers.zero_stage == 3 else 0
    return found.held - found.base_head - found.buffers + bucket + found.host - written


def _worker(rank: int, port: int, out: Path) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    measured = {name: _held(out / "policy", config, rank) for name, config in _CASES.items()}
    if rank == 0:
        torch.save(measured, out / "measured.pt")
    torch.distributed.destroy_process_group()


def _held(policy: Path, config: DistillConfig, rank: int) -> int:
    """Bytes of all tensors when the gradient of the second step is complete; the first step made the moments."""
    from sdpo_ray.distill.loss.drift import BaseScores
    from sdpo_ray.distill.loss.kl_monitor import BaseView
    from sdpo_ray.distill.train.learner import Learner

    unwatched = BaseScores(view=BaseView(hidden={}, head_VD=None), logprobs={})
    before = _storages()
    learner = Learner(policy, config, num_steps=2, seed=0, rank=rank, num_workers=2)
    step, found = learner._apply, []

    def weigh(rate: float) -> float:
        now = _storages()
        found.append(sum(storage.nbytes() for address, storage in now.items() if address not in before))
        return step(rate)

    learner._apply = weigh  # type: ignore[method-assign]
    for _ in range(2):
        learner.step(examples()[:8], unwatched)
    return found[1]


def _storages() -> dict[int, Any]:
    """All storages of tensors by address. Holding the result keeps the addresses from being reused."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return {storage.data_ptr(): storage for storage in storages}
