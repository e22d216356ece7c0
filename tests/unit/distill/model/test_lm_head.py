"""The output layer in chunks. Numbers in names are those of the golden tests in the algorithm's notes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdpo_ray.distill.data.example import HINDSIGHT
from sdpo_ray.distill.loss.sdpo_loss import TeacherScores
from sdpo_ray.distill.model.lm_head import chunks, fused_loss, logits, logprobs
from tests.support.training_batches import SIGNALS, learns, table


def _problem(num_tokens: int, hidden: int, vocabulary: int, dtype: Any = torch.float64) -> tuple[Tensor, ...]:
    """Hidden states, weights, targets, temperatures and a weight for each token."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(num_tokens, hidden, generator=generator, dtype=dtype),
        torch.randn(vocabulary, hidden, generator=generator, dtype=dtype),
        torch.randint(0, vocabulary, (num_tokens,), generator=generator),
        torch.rand(num_tokens, generator=generator, dtype=dtype) + 0.5,
        torch.randn(num_tokens, generator=generator, dtype=dtype),
    )


def _weighted(target_N: Tensor, coefficient_N: Tensor) -> Any:
    """sum c log p(y) and its gradient."""

    def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_p_CV = logits_CV.log_softmax(-1)
        onehot_CV = torch.nn.functional.one_hot(target_N[part], logits_CV.shape[-1])
        loss = (coefficient_N[part] * log_p_CV.gather(-1, target_N[part, None])[:, 0]).sum()
        return loss, coefficient_N[part, None] * (onehot_CV - log_p_CV.exp())

    return gradient


def _chunked(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(
        "sdpo_ray.distill.model.lm_head.chunks",
        lambda n, vocabulary, limit: [slice(start, start + tokens) for start in range(0, n, tokens)],
    )


class _Again(torch.autograd.Function):
    """The fused loss, computed again for each backward pass: it allows one, and gradcheck makes several."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, fused: Any) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD)
        ctx.fused = fused
        found: Tensor = fused(hidden_ND, weight_VD)
        return found

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        inputs = [each.detach().requires_grad_(each.requires_grad) for each in ctx.saved_tensors]
        with torch.enable_grad():
            (scale * ctx.fused(*inputs)).backward()
        return inputs[0].grad, inputs[1].grad, None


@pytest.mark.parametrize("frozen", ["nothing", "weights", "hidden states"])
def test_golden_21_the_fused_loss_passes_gradcheck_in_fp64(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _chunked(monkeypatch, 3)
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(7, 4, 9)
    hidden_ND.requires_grad_(frozen != "hidden states")
    weight_VD.requires_grad_(frozen != "weights")
    gradient = _weighted(target_N, coefficient_N)

    def fused(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_loss(hidden, weight, temperature_N, gradient, logits_mib=1)

    assert torch.autograd.gradcheck(lambda *inputs: 0.7 * _Again.apply(*inputs, fused), (hidden_ND, weight_VD))


def test_a_second_backward_pass_is_an_error_and_not_a_gradient_of_another_scale() -> None:
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(7, 4, 9)
    loss = fused_loss(
        hidden_ND.requires_grad_(), weight_VD, temperature_N, _weighted(target_N, coefficient_N), logits_mib=1
    )
    loss.backward(torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("tokens", [1, 2, 7, 100])
def test_golden_20_and_21_chunks_equal_one_naive_forward_and_backward(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _chunked(monkeypatch, tokens)
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(7, 16, 50)
    inputs = (hidden_ND.requires_grad_(), weight_VD.requires_grad_())
    naive_N = (hidden_ND @ weight_VD.T / temperature_N[:, None]).log_softmax(-1)[range(7), target_N]
    fused = fused_loss(*inputs, temperature_N, _weighted(target_N, coefficient_N), logits_mib=1)
    assert fused.item() == pytest.approx((naive_N @ coefficient_N).item(), rel=1e-13)
    for ours, theirs in zip(
        torch.autograd.grad(3 * fused, inputs), torch.autograd.grad(3 * naive_N @ coefficient_N, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    scored_N = logprobs(hidden_ND, weight_VD, target_N, temperature_N, logits_mib=1)
    torch.testing.assert_close(scored_N, naive_N.detach(), rtol=1e-13, atol=1e-13)
    assert not scored_N.requires_grad


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_20_every_estimator_s_loss_and_gradients_do_not_depend_on_chunks(
    signal: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student_NV, teacher_NV = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row_N = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])

    def both() -> tuple[Tensor, Tensor]:
        logits_NV = student_NV.clone().requires_grad_()
        student = table(
            torch.arange(9),
            learns(**signal),
            weight_N=torch.linspace(0.1, 0.9, 9, dtype=torch.float64),
            teacher_NV=teacher_NV,
            row_N=row_N,
        )
        loss = student.loss(logits_NV, torch.eye(12, dtype=torch.float64))
        return loss.detach(), torch.autograd.grad(loss, logits_NV)[0]

    whole = both()
    _chunked(monkeypatch, 2)
    for ours, theirs in zip(both(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_chunks_cover_every_token_once_within_the_limit() -> None:
    # 1 MiB of fp32 is 262,144 logits: of 100,000 tokens' vocabulary, two rows.
    assert chunks(5, 100_000, 1) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert chunks(2, 10**9, 1) == [slice(0, 1), slice(1, 2)]
    assert chunks(0, 264, 1) == []
    assert chunks(3, 264, 128) == [slice(0, 128 * 2**20 // (4 * 264))]


class _Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return found


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_21_no_tensor_is_larger_than_the_logits_of_one_chunk(signal: dict[str, Any]) -> None:
    # 1 MiB holds five tokens' logits; the output weights are smaller still.
    num_tokens, vocabulary, size = 24, 50_000, 4
    hidden_ND, weight_VD, target_N, *_ = _problem(num_tokens, size, vocabulary, torch.float32)
    hidden_ND.requires_grad_(), weight_VD.requires_grad_()
    config = learns(logits_mib=1, **signal)
    teacher_ND = hidden_ND.detach().flip(0)
    student = table(target_N, config, weight_N=torch.ones(num_tokens), row_N=torch.arange(num_tokens) // 4)
    if config.signal.compares_distributions:
        student.teacher = TeacherScores(by_context={HINDSIGHT: teacher_ND})
    with _Largest() as largest:
        student.loss(hidden_ND, weight_VD).backward()
    assert largest.elements == 5 * vocabulary
    assert largest.elements * 4 <= 2**20 < num_tokens * vocabulary * 4


def test_golden_21_the_recorder_detects_whole_logits() -> None:
    hidden_ND, weight_VD, *_ = _problem(24, 4, 5000, torch.float32)
    with _Largest() as largest:
        (hidden_ND @ weight_VD.T).log_softmax(-1)
    assert largest.elements == 24 * 5000


def test_frozen_weights_get_no_gradient_and_cost_none() -> None:
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(7, 4, 900)
    hidden_ND.requires_grad_()
    with _Largest() as largest:
        fused_loss(hidden_ND, weight_VD, temperature_N, _weighted(target_N, coefficient_N), logits_mib=1).backward()
    assert weight_VD.grad is None
    assert hidden_ND.grad is not None
    assert largest.elements == 7 * 900


def test_bf16_hidden_states_have_fp32_logits_scores_and_losses() -> None:
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(64, 32, 200, torch.float32)
    hidden_ND, weight_VD = 4 * hidden_ND.bfloat16(), weight_VD.bfloat16()
    exact_NV = hidden_ND.double() @ weight_VD.double().T / temperature_N[:, None]
    torch.testing.assert_close(logits(hidden_ND, weight_VD, temperature_N).double(), exact_NV, rtol=1e-5, atol=1e-4)
    scored_N = logprobs(hidden_ND, weight_VD, target_N, temperature_N, logits_mib=1)
    assert scored_N.dtype == torch.float32
    torch.testing.assert_close(scored_N.double(), exact_NV.log_softmax(-1)[range(64), target_N], rtol=1e-5, atol=1e-4)

    inputs = (hidden_ND.requires_grad_(), weight_VD.requires_grad_())
    loss = fused_loss(*inputs, temperature_N, _weighted(target_N, coefficient_N), logits_mib=1)
    assert loss.dtype == torch.float32
    for gradient, of in zip(torch.autograd.grad(loss, inputs), inputs, strict=True):
        assert gradient.dtype == of.dtype == torch.bfloat16


def test_no_scored_tokens_give_a_loss_of_zero_with_zero_gradients() -> None:
    hidden_ND, weight_VD, target_N, temperature_N, coefficient_N = _problem(0, 4, 9)
    inputs = (hidden_ND.requires_grad_(), weight_VD.requires_grad_())
    loss = fused_loss(*inputs, temperature_N, _weighted(target_N, coefficient_N), logits_mib=1)
    assert loss.item() == 0
    assert [gradient.abs().sum().item() for gradient in torch.autograd.grad(loss, inputs)] == [0, 0]
    assert logprobs(hidden_ND, weight_VD, target_N, temperature_N, logits_mib=1).shape == (0,)
