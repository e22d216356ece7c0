"""The GPU kernels against plain torch. Run with `pytest tests/gpu` on a machine with a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.distill.data.packing import PackedRows
from sdpo_ray.distill.model.lm_head import fused_loss, logprobs
from sdpo_ray.distill.model.load import load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM
from tests.support.builders import tiny_policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

_LENGTHS = (7, 200, 33)


def _rows(device: str) -> PackedRows:
    total = sum(_LENGTHS)
    bounds = torch.tensor([0, *torch.tensor(_LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    ids = torch.randint(0, 256, (1, total), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])[None]
    scored = torch.arange(total - 1)
    return PackedRows(
        ids_1S=ids.to(device),
        positions_1S=positions.to(device),
        bounds=bounds.to(device),
        longest=max(_LENGTHS),
        scored_N=scored.to(device),
        row_N=torch.zeros_like(scored).to(device),
        target_N=ids[0, 1:].to(device),
        temperature_N=torch.ones(total - 1, device=device),
    )


def _score(policy: Path, dtype: Any, device: str, kernels: Any = "torch") -> torch.Tensor:
    rows = _rows(device)
    scorer = PackedLM(load_packed(policy, dtype, kernels=kernels)).to(device)

    def work(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
        return logprobs(hidden_ND, weight_VD, rows.target_N, rows.temperature_N, logits_mib=1)

    with torch.no_grad():
        return scorer(rows, work).cpu()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_packed_bf16_scores_on_a_gpu_are_close_to_fp32_on_the_cpu(kernels: str, tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path)
    exact, fast = _score(policy, "float32", "cpu"), _score(policy, "bfloat16", "cuda", kernels)
    assert (fast - exact).abs().mean() < 0.05


def test_fp32_scores_on_a_gpu_are_those_on_the_cpu(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path)
    torch.testing.assert_close(_score(policy, "float32", "cuda"), _score(policy, "float32", "cpu"), rtol=0, atol=1e-3)


def test_the_head_s_gradient_in_bf16_has_the_direction_of_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(300, 64), torch.randn(5000, 64) * 0.1, torch.randint(0, 5000, (300,))

    def gradient(device: str, dtype: torch.dtype) -> torch.Tensor:
        h, w = (each.to(device, dtype).requires_grad_() for each in (hidden, weight))
        y = targets.to(device)

        def nll(logits_CV: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            total = logits_CV.logsumexp(-1, keepdim=True)
            loss = (total[:, 0] - logits_CV.gather(-1, y[part, None])[:, 0]).sum()
            grad = (logits_CV - total).exp()
            return loss, grad.scatter_add_(-1, y[part, None], torch.full_like(total, -1.0))

        fused_loss(h, w, torch.ones(300, device=device), nll, logits_mib=1).backward()
        assert h.grad is not None
        assert w.grad is not None
        return torch.cat([h.grad.flatten(), w.grad.flatten()]).float().cpu()

    exact, fast = gradient("cpu", torch.float32), gradient("cuda", torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(exact, fast, dim=0) > 0.9999
