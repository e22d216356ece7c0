"""Each formula of the loss. Numbers in names are those of the golden tests in the algorithm's notes."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sdpo_ray.config.signal import SignalConfig
from sdpo_ray.distill.loss.advantages import (
    LossTerms,
    advantages,
    base_kl_term,
    bounded,
    finite_rows,
    importance,
    policy_gradient,
    reverse_kl,
    row_means,
    target_logprobs,
    token_weights,
)
from tests.support.training_batches import learns

_NAN = math.nan


def _signal(**values: Any) -> SignalConfig:
    return SignalConfig(**({"log_mix": None, "tis_cap": None} | values))


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _terms(count: int, **known: Tensor) -> LossTerms:
    unknown_N = torch.full((count,), _NAN, dtype=torch.float64)
    fields = dict.fromkeys(("sampler_logp_N", "base_logp_N"), unknown_N)
    plain = {"weight_N": torch.ones(count, dtype=torch.float64), "row_N": torch.zeros(count, dtype=torch.long)}
    return LossTerms(**(plain | fields | known))


def test_an_advantage_is_the_teacher_s_log_prob_over_the_reference_s() -> None:
    assert advantages(_double(-0.5, -3.0), _double(-1.0, -2.75), _signal()).tolist() == [0.5, -0.25]


def test_a_mixed_advantage_is_log_of_a_e_to_the_a_and_the_rest() -> None:
    found = bounded(_double(0.0, 2.0, -1.0, -50.0), _signal(log_mix=0.9)).tolist()
    assert found[0] == 0
    assert found[1:3] == pytest.approx([math.log(0.9 * math.exp(A) + 0.1) for A in (2.0, -1.0)], abs=1e-15)
    assert found[3] == pytest.approx(math.log(0.1), abs=1e-12)


def test_a_clip_holds_after_the_mixture() -> None:
    assert bounded(_double(-9.0, -0.5, 0.0, 9.0), _signal(clip=2.0)).tolist() == [-2.0, -0.5, 0.0, 2.0]
    assert bounded(_double(-50.0), _signal(clip=1.0, log_mix=0.9)).tolist() == [-1.0]
    assert bounded(_double(-50.0), _signal(clip=3.0, log_mix=0.9)).tolist() == pytest.approx([math.log(0.1)])


@pytest.mark.parametrize("signal", [{"estimator": "full_kl"}, {"baseline": "token_kl"}], ids=str)
def test_a_clip_is_refused_where_distributions_are_compared(signal: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"signal\.clip"):
        learns(clip=1.0, **signal)


@given(advantages=st.lists(st.floats(-80, 80), min_size=2, max_size=9), mix=st.floats(0.01, 0.99))
def test_bounding_keeps_order_sign_and_zero_and_never_falls_under_log_1_minus_a(
    advantages: list[float], mix: float
) -> None:
    values = sorted([*advantages, 0.0])
    found = bounded(_double(*values), _signal(log_mix=mix)).tolist()
    assert found[values.index(0.0)] == 0
    assert min(found) >= math.log1p(-mix) - 1e-12
    for before, after in zip(values, found, strict=True):
        assert math.copysign(1.0, before) * after >= -1e-12
        assert abs(after) <= abs(before) + 1e-12
    assert all(later - earlier >= -1e-12 for earlier, later in pairwise(found))


def test_golden_12_importance_is_truncated_unknown_samplers_count_one_and_nothing_has_a_gradient() -> None:
    logp_N = _double(-1.0, -1.0, -1.0, -1.0).requires_grad_()
    sampler_N = _double(-1.0, -1.0 + math.log(4), -1.0 - math.log(5), _NAN)
    found = importance(logp_N, sampler_N, 2.0)
    assert found.tolist() == pytest.approx([1.0, 0.25, 2.0, 1.0], abs=1e-15)
    assert not found.requires_grad
    assert importance(logp_N.detach(), sampler_N, None).tolist() == [1.0] * 4


@pytest.mark.parametrize("normalize", ["seq_mean_token_mean", "token_mean", "token_sum"])
def test_golden_9_normalisations_distribute_the_loss_as_computed_by_hand(normalize: str) -> None:
    # Of four sequences and ten tokens in the batch, this worker has three with 1, 3 and 0 scored tokens.
    by_hand = {
        "seq_mean_token_mean": [1 / 4, 0.5 / 12, 0.5 / 12, 0.5 / 12],
        "token_mean": [1 / 10, 0.5 / 10, 0.5 / 10, 0.5 / 10],
        "token_sum": [1 / 4, 0.5 / 4, 0.5 / 4, 0.5 / 4],
    }
    found = token_weights([1, 3, 0], [1.0, 0.5, 1.0], normalize, 4, 10)
    assert found.tolist() == pytest.approx(by_hand[normalize], rel=1e-7)
    assert found.dtype == torch.float32
    assert token_weights([], [], normalize, 0, 0).tolist() == []


def test_golden_9_a_longer_response_with_the_same_advantages_has_the_same_share_of_the_loss() -> None:
    logp_N, advantage_N = _double(-1.0, -2.0, -1.0, -2.0, -1.0, -2.0), _double(1.0, 0.5, 1.0, 0.5, 1.0, 0.5)
    weight_N = token_weights([2, 4], [1.0, 1.0], "seq_mean_token_mean", 2, 6)
    terms = _terms(6, weight_N=weight_N, row_N=torch.tensor([0, 0, 1, 1, 1, 1]))
    part_N = policy_gradient(logp_N, advantage_N, terms, _signal()).coefficient_N * logp_N
    assert part_N[:2].sum().item() == pytest.approx(part_N[2:].sum().item(), rel=1e-7)
    assert part_N.sum().item() == pytest.approx((1 * 1 + 0.5 * 2) / 2, rel=1e-7)


def test_golden_7_seq_mean_gives_each_sequence_a_sum_of_zero_and_a_single_token_zero() -> None:
    row_N = torch.tensor([0, 0, 0, 2, 3, 3])
    terms = _terms(6, row_N=row_N)
    moved = policy_gradient(
        _double(*[-1.0] * 6), _double(3.0, -1.0, 4.0, 7.0, 0.1, 0.2), terms, _signal(baseline="seq_mean")
    )
    sums_B = torch.zeros(4, dtype=torch.float64).index_add_(0, row_N, moved.coefficient_N)
    torch.testing.assert_close(sums_B, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert moved.coefficient_N.tolist() == pytest.approx([-1.0, 3.0, -2.0, 0.0, 0.05, -0.05], abs=1e-15)
    assert moved.coefficient_N[3] == 0
    assert moved.advantage_N.tolist() == [3.0, -1.0, 4.0, 7.0, 0.1, 0.2]


def test_row_means_leave_out_rows_without_tokens() -> None:
    assert row_means(_double(1.0, 3.0, 8.0), torch.tensor([0, 0, 2])).tolist() == [2.0, 2.0, 8.0]
    assert row_means(_double(), torch.tensor([], dtype=torch.long)).tolist() == []


def test_a_coefficient_is_the_weight_times_the_ratio_times_advantage_less_baseline_less_kl_term() -> None:
    terms = _terms(
        2,
        weight_N=_double(0.5, 0.25),
        sampler_logp_N=_double(-1.0 + math.log(2), _NAN),
        base_logp_N=_double(-3.0, _NAN),
    )
    moved = policy_gradient(
        _double(-1.0, -1.0), _double(4.0, -2.0), terms, _signal(tis_cap=2.0), kl_penalty=0.1, baseline=1.0
    )
    assert moved.ratio_N.tolist() == pytest.approx([0.5, 1.0])
    assert moved.coefficient_N.tolist() == pytest.approx([-0.5 * 0.5 * (4 - 1 - 0.2), -0.25 * 1 * (-2 - 1)])


def test_the_kl_term_is_zero_where_the_base_is_unknown_or_not_penalised() -> None:
    logp_N, base_N = _double(-1.0, -1.0), _double(-4.0, _NAN)
    assert base_kl_term(logp_N, base_N, 0.5).tolist() == [1.5, 0.0]
    assert base_kl_term(logp_N, base_N, 0.0).tolist() == [0.0, 0.0]


def test_golden_6_full_kl_is_the_definition_and_so_is_its_gradient() -> None:
    logits_CV = _logits(0, 4, 7).requires_grad_()
    log_q_CV = _logits(1, 4, 7).log_softmax(-1)
    p_CV = logits_CV.softmax(-1)
    definition_C = (p_CV * (p_CV / log_q_CV.exp()).log()).sum(-1)
    found_C = reverse_kl(logits_CV, log_q_CV, None)
    torch.testing.assert_close(found_C, definition_C, rtol=0, atol=1e-14)
    weight_C = _double(1.0, -2.0, 0.5, 3.0)
    (ours,) = torch.autograd.grad(found_C @ weight_C, logits_CV)
    (theirs,) = torch.autograd.grad(definition_C @ weight_C, logits_CV)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("top_k", [7, 8, 1000])
def test_golden_6_a_top_k_of_the_whole_vocabulary_is_full_kl(top_k: int) -> None:
    logits_CV, log_q_CV = _logits(0, 4, 7).requires_grad_(), _logits(1, 4, 7).log_softmax(-1)
    whole, part = reverse_kl(logits_CV, log_q_CV, None), reverse_kl(logits_CV, log_q_CV, top_k)
    assert torch.equal(part, whole)
    assert torch.equal(*(torch.autograd.grad(each.sum(), logits_CV)[0] for each in (part, whole)))


@given(seed=st.integers(0, 10**6), spread=st.floats(0.1, 8.0))
def test_golden_6_top_k_is_a_lower_bound_that_grows_with_k(seed: int, spread: float) -> None:
    logits_CV, teacher_CV = spread * _logits(seed, 2, 1, 9)
    log_q_CV = teacher_CV.log_softmax(-1)
    bounds = [reverse_kl(logits_CV, log_q_CV, k).item() for k in range(1, 10)]
    full = reverse_kl(logits_CV, log_q_CV, None).item()
    assert bounds[-1] == full
    assert min(bounds) >= -1e-5
    assert max(bounds) <= full + 1e-5
    # fp32 cannot tell a bucket's probability from 0 below 1e-7; the bound is then looser and may fall with K.
    if min(logits_CV.softmax(-1).min(), log_q_CV.exp().min()) > 2e-7:
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(bounds))
        assert bounds[0] >= -1e-12


def test_golden_6_top_k_compares_the_student_s_top_tokens_and_one_bucket_whose_choice_has_no_gradient() -> None:
    logits_V, log_q_V = _logits(0, 6).requires_grad_(), _logits(1, 6).log_softmax(-1)
    kept = sorted(range(6), key=lambda v: -logits_V[v].item())[:2]
    p_V, q_V = logits_V.softmax(-1), log_q_V.exp()
    left_p, left_q = 1 - sum(p_V[v] for v in kept), 1 - sum(q_V[v] for v in kept)
    by_hand = sum(p_V[v] * (p_V[v] / q_V[v]).log() for v in kept) + left_p * (left_p / left_q).log()
    found = reverse_kl(logits_V[None], log_q_V[None], 2)[0]
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-14)
    (ours,), (theirs,) = (torch.autograd.grad(each, logits_V) for each in (found, by_hand))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gap", [0.0, 10.0, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_6_the_bucket_is_stable_as_its_probability_goes_to_zero(gap: float, dtype: torch.dtype) -> None:
    logits_CV = torch.tensor([[gap, gap - 1, 0.0, -1.0], [gap, 0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    log_q_CV = torch.tensor([[gap, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]], dtype=dtype).log_softmax(-1)
    found_C = reverse_kl(logits_CV, log_q_CV, 2)
    (gradient_CV,) = torch.autograd.grad(found_C.sum(), logits_CV)
    assert found_C.isfinite().all()
    assert gradient_CV.isfinite().all()
    whole_C = reverse_kl(logits_CV, log_q_CV, None)
    assert (found_C <= whole_C * (1 + 1e-4) + 2e-5).all()


def test_golden_6_log_mix_compares_to_the_mixture_with_the_student_held_constant() -> None:
    logits_CV, teacher_CV = _logits(0, 3, 5).requires_grad_(), _logits(1, 3, 5)
    p_CV, q_CV = logits_CV.softmax(-1), teacher_CV.softmax(-1)
    mixture_CV = 0.7 * q_CV + 0.3 * p_CV.detach()
    log_q_CV = target_logprobs(logits_CV, teacher_CV, None, 0.7)
    assert not log_q_CV.requires_grad
    torch.testing.assert_close(log_q_CV.exp(), mixture_CV, rtol=0, atol=1e-15)
    (ours,) = torch.autograd.grad(reverse_kl(logits_CV, log_q_CV, None).sum(), logits_CV)
    (theirs,) = torch.autograd.grad((p_CV * (p_CV / mixture_CV).log()).sum(), logits_CV)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    # The advantage that the mixture implies is the sampled estimator's bounded one.
    implied_CV = log_q_CV - logits_CV.detach().log_softmax(-1)
    plain_CV = teacher_CV.log_softmax(-1) - logits_CV.detach().log_softmax(-1)
    torch.testing.assert_close(implied_CV, bounded(plain_CV, _signal(log_mix=0.7)), rtol=0, atol=1e-14)


def test_golden_10_a_baselined_target_is_the_student_times_teacher_over_reference() -> None:
    student_CV, teacher_CV, reference_CV = (_logits(seed, 3, 5) for seed in range(3))
    unscaled_CV = student_CV.softmax(-1) * teacher_CV.softmax(-1) / reference_CV.softmax(-1)
    found_CV = target_logprobs(student_CV, teacher_CV, reference_CV, None)
    torch.testing.assert_close(found_CV.exp(), unscaled_CV / unscaled_CV.sum(-1, keepdim=True), rtol=0, atol=1e-14)
    for log_mix in (None, 0.9):
        nothing_CV = target_logprobs(student_CV, teacher_CV, teacher_CV, log_mix)
        assert torch.equal(nothing_CV, target_logprobs(student_CV, student_CV, None, None))


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("log_mix", [None, 0.9])
def test_golden_1_a_teacher_of_the_same_logits_has_a_divergence_and_a_gradient_of_exactly_zero(
    top_k: int | None, log_mix: float | None
) -> None:
    logits_CV = (8 * _logits(0, 64, 31)).float().requires_grad_()
    kl_C = reverse_kl(logits_CV, target_logprobs(logits_CV, logits_CV, None, log_mix), top_k)
    (gradient_CV,) = torch.autograd.grad(kl_C.sum(), logits_CV)
    assert kl_C.abs().max() == 0
    assert gradient_CV.abs().max() == 0


def test_a_row_with_one_bad_value_is_not_finite() -> None:
    value_N = torch.tensor([0.0, _NAN, 1.0, -math.inf, 2.0])
    assert finite_rows(value_N, torch.tensor([0, 1, 1, 2, 4]), 5).tolist() == [True, False, False, True, True]
    assert finite_rows(torch.empty(0), torch.empty(0, dtype=torch.long), 0).tolist() == []
