from typing import Any

import pytest
import torch

# vLLM imports torch's compiler, which uses what torch deprecates: nothing of it is imported outside of a test.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@pytest.fixture
def norm_of() -> Any:
    """A norm as vLLM's models make it, of so many dimensions."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("this vLLM is not built for CPUs")

    import serve.upstream.vllm.cpu_norms  # noqa: F401

    current_platform.import_kernels()

    def make(size: int, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
        with set_current_vllm_config(VllmConfig()):
            norm = RMSNorm(size, eps=1e-5, dtype=dtype, **options)
        norm.weight.data.copy_(torch.linspace(0.5, 2.0, size))
        return norm

    return make


def by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    exact = x.double()
    return (exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()).to(x.dtype)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_a_norm_is_the_kernels_and_right(norm_of, monkeypatch):
    norm, x = norm_of(32), drawn(5, 32)
    monkeypatch.setattr(norm, "forward_native", None)
    assert torch.allclose(norm(x), by_hand(x, norm.weight), atol=1e-6)


def test_heads_that_lie_apart_in_memory_are_normed_each(norm_of):
    norm, queries = norm_of(32), drawn(3, 256)[:, :128].view(3, 4, 32)
    assert not queries.is_contiguous()
    assert torch.allclose(norm(queries), by_hand(queries, norm.weight), atol=1e-6)


def test_a_residual_is_added_first_and_handed_on(norm_of, monkeypatch):
    norm, x, residual = norm_of(48), drawn(5, 48), drawn(2, 5, 48)[1].clone()
    total = x + residual
    monkeypatch.setattr(norm, "forward_native", None)
    normed, handed_on = norm(x, residual)
    assert torch.equal(handed_on, total)
    assert torch.allclose(normed, by_hand(total, norm.weight), atol=1e-6)


def test_a_residual_that_lies_apart_in_memory_is_added_too(norm_of):
    norm, x, residual = norm_of(32), drawn(5, 32), drawn(5, 64)[:, ::2]
    total = x + residual
    normed, handed_on = norm(x, residual)
    assert torch.equal(handed_on, total)
    assert torch.allclose(normed, by_hand(total, norm.weight), atol=1e-6)


@pytest.mark.parametrize("size", [8, 20, 100])
def test_rows_that_are_no_whole_vectors_are_torchs(norm_of, size):
    norm, x = norm_of(size), drawn(3, size)
    assert torch.allclose(norm(x), by_hand(x, norm.weight), atol=1e-6)


def test_in_16_bits_a_norm_rounds_as_torch_does(norm_of):
    norm, x = norm_of(32, torch.bfloat16), drawn(50, 32).bfloat16()
    rounded = (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16()
    assert torch.equal(norm(x), rounded * norm.weight)


def test_a_norm_without_weights_or_of_a_part_is_torchs(norm_of):
    x = drawn(3, 32)
    assert torch.allclose(norm_of(32, has_weight=False)(x), by_hand(x, torch.ones(32)), atol=1e-6)
    part = norm_of(32, var_hidden_size=16)
    exact = x.double() / (x[:, :16].double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * part.weight.double()
    assert torch.allclose(part(x), exact.float(), atol=1e-6)
