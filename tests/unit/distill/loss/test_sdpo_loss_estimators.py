"""Expected gradients by enumeration of all responses. Numbers in names are those of the algorithm's golden tests.

A policy is a table of logits; its answers are few enough to add up all of them, so nothing is left to chance. The loss
is the product's own, in fp64.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.distill.loss.advantages import policy_gradient
from tests.support.training_batches import SIGNALS, Tree, learns, table

_TIGHT = {"rtol": 0, "atol": 1e-12}


def _logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _expected(tree: Tree, student_PV: Tensor, teacher_PV: Tensor, config: Any, **known: Any) -> Tensor:
    student_PV = student_PV.clone().requires_grad_()
    loss = tree.expected(student_PV, teacher_PV, config, **known)
    return torch.autograd.grad(loss, student_PV)[0]  # type: ignore[no-any-return]


def _derivative(student_PV: Tensor, loss: Any) -> Tensor:
    student_PV = student_PV.clone().requires_grad_()
    return torch.autograd.grad(loss(student_PV), student_PV)[0]  # type: ignore[no-any-return]


def _one_each(student_NV: Tensor, target_N: Tensor, config: Any, **known: Any) -> tuple[Any, Tensor]:
    """One token a sequence, all of weight 1: the student afterwards, and the gradient of its logits."""
    logits_NV = student_NV.clone().requires_grad_()
    student = table(target_N, config, weight_N=torch.ones(len(target_N), dtype=torch.float64), **known)
    loss = student.loss(logits_NV, torch.eye(student_NV.shape[1], dtype=torch.float64))
    return student, torch.autograd.grad(loss, logits_NV)[0]


def test_golden_2_a_teacher_of_shifted_logits_moves_each_token_by_the_shift_s_algebra() -> None:
    student_NV, shift_NV, target_N = _logits(0, 6, 5), _logits(1, 6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    student, found_NV = _one_each(student_NV, target_N, learns(), teacher_NV=student_NV + shift_NV)
    p_NV = student_NV.softmax(-1)
    # log q_y - log p_y = d_y - log E_p[e^d]
    advantage_N = shift_NV[range(6), target_N] - (p_NV * shift_NV.exp()).sum(-1).log()
    torch.testing.assert_close(student.advantage_N.double(), advantage_N, rtol=1e-6, atol=1e-6)
    onehot_NV = torch.nn.functional.one_hot(target_N, 5)
    torch.testing.assert_close(found_NV, -advantage_N[:, None] * (onehot_NV - p_NV), **_TIGHT)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_1_and_2_an_equal_shift_of_all_logits_has_no_effect(signal: dict[str, Any]) -> None:
    student_NV, target_N = _logits(0, 6, 7), torch.tensor([0, 4, 2, 2, 1, 3])
    _, found_NV = _one_each(student_NV, target_N, learns(**signal), teacher_NV=student_NV + 3.0)
    torch.testing.assert_close(found_NV, torch.zeros_like(student_NV), **_TIGHT)
    student, found_NV = _one_each(student_NV, target_N, learns(**signal), teacher_NV=student_NV)
    assert student.advantage_N.abs().max() == 0
    assert found_NV.abs().max() == 0


def test_golden_3_lemma_b1_the_expected_sampled_gradient_is_that_of_the_token_kl_for_a_fixed_follow_up() -> None:
    tree = Tree(vocabulary=3, length=2)
    student_PV, teacher_PV = _logits(0, *tree.shape), _logits(1, *tree.shape)
    log_q_PV = teacher_PV.log_softmax(-1)
    exact = _derivative(
        student_PV,
        # The prefix is sampled and held constant: the lemma's sum is over tokens, without credit for later ones.
        lambda theta: tree.visited(theta, lambda log_p_PV: (log_p_PV.exp() * (log_p_PV - log_q_PV)).sum(-1)),
    )
    assert exact.abs().max() > 0.1
    for signal in ({}, {"estimator": "full_kl"}, {"estimator": "topk_reverse_kl", "top_k": 3}):
        torch.testing.assert_close(_expected(tree, student_PV, teacher_PV, learns(**signal)), exact, **_TIGHT)


@pytest.mark.parametrize(
    ("favoured", "sampled", "full"), [(0.1, 0.109177, -0.126560), (0.3, 0.111, -0.148), (0.5, 0.0, 0.0)]
)
def test_golden_4_with_the_user_s_own_answer_sampled_and_full_kl_ascend_in_opposite_directions(
    favoured: float, sampled: float, full: float
) -> None:
    # Two responses, one favoured with this probability; the user's feedback on which is right is true 9 times in 10.
    says_VO = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    prior_V = torch.tensor([favoured, 1 - favoured], dtype=torch.float64)
    joint_VO = prior_V[:, None] * says_VO
    posterior_VO = joint_VO / joint_VO.sum(0)
    answer_N, said_N = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    for signal, ascent in (({}, sampled), ({"estimator": "full_kl"}, full)):
        logit = torch.tensor(math.log(favoured / (1 - favoured)), dtype=torch.float64, requires_grad=True)
        student = table(
            answer_N,
            learns(**signal),
            weight_N=joint_VO[answer_N, said_N],
            teacher_NV=posterior_VO.log().T[said_N],
        )
        logits_NV = torch.stack([logit, torch.zeros_like(logit)]).expand(4, 2)
        loss = student.loss(logits_NV, torch.eye(2, dtype=torch.float64))
        found = -torch.autograd.grad(loss, logit)[0].item()
        assert found == pytest.approx(ascent, abs=5e-4 if favoured == 0.3 else 1e-6)


def test_golden_5_the_gradient_is_the_closed_form_of_a_constant_advantage() -> None:
    student_NV, teacher_NV, target_N = (
        _logits(0, 5, 4),
        _logits(1, 5, 4).requires_grad_(),
        torch.tensor([0, 3, 1, 1, 2]),
    )
    weight_N = torch.tensor([0.5, 0.25, 0.25, 1.0, 2.0], dtype=torch.float64)
    logits_NV = student_NV.clone().requires_grad_()
    loss = table(target_N, learns(), weight_N=weight_N, teacher_NV=teacher_NV).loss(
        logits_NV, torch.eye(4, dtype=torch.float64)
    )
    loss.backward()
    log_p_NV = student_NV.log_softmax(-1)
    advantage_N = (teacher_NV.detach().log_softmax(-1) - log_p_NV)[range(5), target_N]
    onehot_NV = torch.nn.functional.one_hot(target_N, 4)
    closed_NV = -(weight_N * advantage_N)[:, None] * (onehot_NV - log_p_NV.exp())
    torch.testing.assert_close(logits_NV.grad, closed_NV, rtol=0, atol=1e-14)
    assert teacher_NV.grad is None
    assert loss.item() == pytest.approx(-(weight_N * advantage_N * log_p_NV[range(5), target_N]).sum().item())


def test_golden_7_seq_mean_biases_the_gradient_by_its_closed_form() -> None:
    tree = Tree(vocabulary=3, length=3)
    student_PV, teacher_PV = _logits(0, *tree.shape), _logits(1, *tree.shape)
    plain = _expected(tree, student_PV, teacher_PV, learns())
    centred = _expected(tree, student_PV, teacher_PV, learns(baseline="seq_mean"))

    def credit_of_later_tokens(theta_PV: Tensor) -> Tensor:
        logp_YT = tree.logp(theta_PV)
        advantage_YT = tree.logp(teacher_PV) - logp_YT.detach()
        later_YT = advantage_YT.flip(-1).cumsum(-1).flip(-1) - advantage_YT
        return (logp_YT.sum(-1).exp().detach()[:, None] * logp_YT * later_YT).sum()

    # g_c = (1 - 1/T) g - 1/T sum_i sum_j>i E[grad log pi(y_i) A_j], for ascent; a loss has the other sign.
    bias = _derivative(student_PV, credit_of_later_tokens)
    torch.testing.assert_close(centred, (1 - 1 / 3) * plain + bias / 3, **_TIGHT)
    assert (centred - plain).norm() > 0.1 * plain.norm()


def test_golden_7_seq_mean_takes_the_whole_signal_of_one_token_answers() -> None:
    tree = Tree(vocabulary=4, length=1)
    student_PV, teacher_PV = _logits(0, *tree.shape), _logits(1, *tree.shape)
    assert _expected(tree, student_PV, teacher_PV, learns(baseline="seq_mean")).abs().max() == 0
    assert _expected(tree, student_PV, teacher_PV, learns()).abs().max() > 0.01


def test_golden_8_with_its_kl_as_baseline_a_position_s_advantage_has_mean_zero() -> None:
    log_p_V, log_q_V = _logits(0, 6).log_softmax(-1), _logits(1, 6).log_softmax(-1)
    kl = (log_p_V.exp() * (log_p_V - log_q_V)).sum()
    student = table(torch.arange(6), learns(), weight_N=log_p_V.exp(), teacher_NV=log_q_V.expand(6, 6))
    moved = policy_gradient(log_p_V, log_q_V - log_p_V, student.terms, learns().signal, baseline=-kl)
    assert abs(moved.coefficient_N.sum().item()) < 1e-15
    assert moved.coefficient_N.abs().sum() > 0.1


def test_golden_8_the_kl_baseline_moves_each_token_by_its_closed_form_and_not_the_expected_gradient() -> None:
    tree = Tree(vocabulary=3, length=2)
    student_PV, teacher_PV = _logits(0, *tree.shape), _logits(1, *tree.shape)
    plain = _expected(tree, student_PV, teacher_PV, learns())
    torch.testing.assert_close(_expected(tree, student_PV, teacher_PV, learns(baseline="token_kl")), plain, **_TIGHT)

    student_NV, teacher_NV, target_N = _logits(2, 4, 5), _logits(3, 4, 5), torch.tensor([0, 1, 4, 4])
    _, found_NV = _one_each(student_NV, target_N, learns(baseline="token_kl"), teacher_NV=teacher_NV)
    p_NV, log_ratio_NV = student_NV.softmax(-1), teacher_NV.log_softmax(-1) - student_NV.log_softmax(-1)
    centred_N = log_ratio_NV[range(4), target_N] - (p_NV * log_ratio_NV).sum(-1)
    onehot_NV = torch.nn.functional.one_hot(target_N, 5)
    torch.testing.assert_close(found_NV, -centred_N[:, None] * (onehot_NV - p_NV), **_TIGHT)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_10_a_teacher_unchanged_by_hindsight_has_no_effect_relative_to_its_own_score(
    signal: dict[str, Any],
) -> None:
    student_NV, teacher_NV, target_N = _logits(0, 6, 7), _logits(1, 6, 7), torch.tensor([0, 4, 2, 2, 1, 3])
    # Two tokens a sequence, because the mean over one would always cancel it.
    row_N = torch.tensor([0, 0, 1, 1, 2, 2])
    student, found_NV = _one_each(
        student_NV, target_N, learns(**signal), teacher_NV=teacher_NV, reference_NV=teacher_NV.clone(), row_N=row_N
    )
    assert student.advantage_N.abs().max() == 0
    assert found_NV.abs().max() == 0
    student, found_NV = _one_each(student_NV, target_N, learns(**signal), teacher_NV=teacher_NV, row_N=row_N)
    assert student.advantage_N.abs().max() > 0.1
    assert found_NV.abs().max() > 0.01


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_12_a_sampler_that_is_the_learner_changes_nothing_and_the_cap_holds(signal: dict[str, Any]) -> None:
    student_NV, teacher_NV, target_N = _logits(0, 6, 7), _logits(1, 6, 7), torch.tensor([0, 4, 2, 2, 1, 3])
    row_N = torch.tensor([0, 0, 1, 1, 2, 2])
    logp_N = student_NV.log_softmax(-1)[range(6), target_N]

    def gradient(sampler_logp_N: Tensor | None, tis_cap: float | None) -> tuple[Any, Tensor]:
        return _one_each(
            student_NV,
            target_N,
            learns(**(signal | {"tis_cap": tis_cap})),
            teacher_NV=teacher_NV,
            sampler_logp_N=sampler_logp_N,
            row_N=row_N,
        )

    _, off = gradient(logp_N - math.log(5), None)
    student, on_policy = gradient(logp_N, 2.0)
    torch.testing.assert_close(on_policy, off, **_TIGHT)
    torch.testing.assert_close(student.ratio_N, torch.ones(6), rtol=0, atol=1e-6)
    student, rarer = gradient(logp_N - math.log(5), 2.0)
    torch.testing.assert_close(rarer, 2 * off, **_TIGHT)
    assert (student.ratio_N == 2).all()
    torch.testing.assert_close(gradient(logp_N + math.log(4), 2.0)[1], off / 4, **_TIGHT)
    assert torch.equal(gradient(None, 2.0)[1], off)


def test_golden_12_uncapped_ratios_turn_another_sampler_s_expectation_into_the_learner_s() -> None:
    student_V, sampler_V, teacher_V = _logits(0, 5), _logits(1, 5), _logits(2, 5)
    tree, log_s_V = Tree(vocabulary=5, length=1), sampler_V.log_softmax(-1)
    on_policy = _expected(tree, student_V[None], teacher_V[None], learns())
    logits_V = student_V.clone().requires_grad_()
    loss = table(
        torch.arange(5),
        learns(tis_cap=1e9),
        weight_N=log_s_V.exp(),
        teacher_NV=teacher_V.expand(5, 5),
        sampler_logp_N=log_s_V,
    ).loss(logits_V.expand(5, 5), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(torch.autograd.grad(loss, logits_V)[0], on_policy[0], **_TIGHT)


@pytest.mark.parametrize("estimator", ["sampled_token", "full_kl", "topk_reverse_kl"])
def test_the_penalty_s_expected_gradient_is_that_of_kl_to_the_base(estimator: str) -> None:
    tree = Tree(vocabulary=3, length=2)
    student_PV, base_PV = _logits(0, *tree.shape), _logits(1, *tree.shape)
    log_base_PV = base_PV.log_softmax(-1)
    found = _expected(
        tree,
        student_PV,
        student_PV,  # the teacher equals the student
        learns(estimator=estimator, top_k=2, kl_penalty=0.3),
        base_logp_N=tree.logp(base_PV).flatten(),
    )
    exact = _derivative(
        student_PV,
        lambda theta: tree.visited(theta, lambda log_p_PV: (log_p_PV.exp() * (log_p_PV - log_base_PV)).sum(-1)),
    )
    torch.testing.assert_close(found, 0.3 * exact, **_TIGHT)


def test_a_scalar_baseline_does_not_move_the_expected_gradient() -> None:
    log_p_V, log_q_V = _logits(0, 6).log_softmax(-1), _logits(1, 6).log_softmax(-1)
    student = table(torch.arange(6), learns(), weight_N=log_p_V.exp(), teacher_NV=log_q_V.expand(6, 6))

    def ascent(baseline: float) -> Tensor:
        moved = policy_gradient(log_p_V, log_q_V - log_p_V, student.terms, learns().signal, baseline=baseline)
        return moved.coefficient_N @ (torch.eye(6, dtype=torch.float64) - log_p_V.exp())

    torch.testing.assert_close(ascent(1.7), ascent(0.0), **_TIGHT)


def test_supervised_learning_raises_every_token_alike() -> None:
    student_NV, target_N = _logits(0, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    _, found_NV = _one_each(student_NV, target_N, learns(objective="sft"))
    onehot_NV = torch.nn.functional.one_hot(target_N, 4)
    torch.testing.assert_close(found_NV, student_NV.softmax(-1) - onehot_NV, rtol=0, atol=1e-14)
