"""SDPO's mathematics and one step of it. Numbers in names are those of the golden tests in the algorithm's notes."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.distill.export import load_policy
from sdpo_ray.distill.hindsight import Example
from sdpo_ray.distill.logprobs import ResponseScorer
from sdpo_ray.distill.objective import advantages, finite_rows, sampled_loss, token_weights
from sdpo_ray.distill.packing import Rows, micro_batches, shard
from sdpo_ray.distill.step import StepSums, run_step
from sdpo_ray.errors import LearnerError
from tests.builders import tiny_policy

_ONE = torch.ones(1, dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_policy(tiny_policy(tmp_path_factory.mktemp("policy"))).eval()


def test_golden_3_lemma_b1_the_expected_sampled_gradient_is_that_of_the_token_kl_for_a_fixed_follow_up() -> None:
    # Every response of two tokens out of three, a tabular policy and teacher: nothing is left to chance.
    torch.manual_seed(0)
    first_V, second_VV = torch.randn(3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    theta = [first_V.requires_grad_(), second_VV.requires_grad_()]
    teacher_V = torch.randn(3, dtype=torch.float64).log_softmax(-1)
    teacher_VV = torch.randn(3, 3, dtype=torch.float64).log_softmax(-1)

    expected = [torch.zeros_like(part) for part in theta]
    kl = torch.zeros((), dtype=torch.float64)
    policy_V, policy_VV = first_V.log_softmax(-1), second_VV.log_softmax(-1)
    for y1, y2 in product(range(3), range(3)):
        logp_N = torch.stack([policy_V[y1], policy_VV[y1, y2]])
        hindsight_N = torch.stack([teacher_V[y1], teacher_VV[y1, y2]])
        loss = sampled_loss(logp_N, advantages(hindsight_N, logp_N), torch.ones(2, dtype=torch.float64))
        probability = logp_N.sum().exp().detach()
        for part, gradient in zip(expected, torch.autograd.grad(loss, theta, retain_graph=True), strict=True):
            part += probability * gradient
    kl = (policy_V.exp() * (policy_V - teacher_V)).sum()
    # The prefix is sampled and held constant: the lemma's sum is over tokens, without credit for later ones.
    kl = kl + (policy_V.exp().detach()[:, None] * policy_VV.exp() * (policy_VV - teacher_VV)).sum()
    for part, gradient in zip(expected, torch.autograd.grad(kl, theta), strict=True):
        assert (part - gradient).abs().max() < 1e-12


def test_golden_4_with_the_user_s_own_answer_sampled_and_full_kl_ascend_in_opposite_directions() -> None:
    # Two answers; the user says which of them was wanted and is right nine times in ten.
    logit = torch.tensor(math.log(0.1 / 0.9), dtype=torch.float64, requires_grad=True)
    favoured = torch.nn.functional.logsigmoid(logit)
    policy_V = torch.stack([favoured, torch.nn.functional.logsigmoid(-logit)])
    likelihood_VO = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    posterior_VO = (policy_V[:, None] + likelihood_VO.log()).log_softmax(0).detach()

    sampled = full = torch.zeros((), dtype=torch.float64)
    for y, o in product(range(2), range(2)):
        probability = (policy_V[y].exp() * likelihood_VO[y, o]).detach()
        logp_N = policy_V[y : y + 1]
        sampled = sampled + probability * sampled_loss(logp_N, advantages(posterior_VO[y : y + 1, o], logp_N), _ONE)
        full = full + probability * (policy_V.exp() * (policy_V - posterior_VO[:, o])).sum()
    assert -torch.autograd.grad(sampled, logit, retain_graph=True)[0].item() == pytest.approx(0.109177, abs=1e-6)
    assert -torch.autograd.grad(full, logit)[0].item() == pytest.approx(-0.126560, abs=1e-6)


def test_golden_5_the_gradient_is_the_closed_form_and_the_advantage_is_a_constant() -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    hindsight_N = torch.randn(5, dtype=torch.float64, requires_grad=True)
    y_N = torch.tensor([0, 3, 1, 1, 2])
    logp_N = logits_NV.log_softmax(-1)[range(5), y_N]
    advantage_N = advantages(hindsight_N, logp_N)
    weight_N = token_weights([2, 3], 2).double()
    sampled_loss(logp_N, advantage_N, weight_N).backward()
    onehot_NV = torch.nn.functional.one_hot(y_N, 4)
    closed_NV = -(weight_N * (hindsight_N - logp_N))[:, None] * (onehot_NV - logits_NV.softmax(-1))
    assert logits_NV.grad is not None
    torch.testing.assert_close(logits_NV.grad, closed_NV.detach(), rtol=0, atol=1e-14)
    assert hindsight_N.grad is None
    assert not advantage_N.requires_grad


def test_golden_9_sequences_weigh_alike_whatever_their_length() -> None:
    torch.testing.assert_close(token_weights([1, 4], 2), torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125]))
    logp_N = torch.tensor([-1.0, -2.0, -2.0, -2.0, -2.0])
    loss = sampled_loss(logp_N, torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5]), token_weights([1, 4], 2))
    assert loss.item() == pytest.approx((1.0 + 1.0) / 2)


def test_a_row_with_one_bad_value_is_not_finite() -> None:
    value_N = torch.tensor([0.0, float("nan"), 1.0, float("-inf"), 2.0])
    assert finite_rows(value_N, torch.tensor([0, 1, 1, 2, 3]), 4).tolist() == [True, False, False, True]
    assert finite_rows(torch.empty(0), torch.empty(0, dtype=torch.long), 0).tolist() == []


def test_golden_1_without_hindsight_advantage_and_gradient_are_exactly_zero(model: Any) -> None:
    batch = [replace(item, hindsight_ids=item.prompt_ids) for item in _batch()]
    sums, gradient = _step(model, micro_batches(batch, 100))
    assert sums.abs_advantage == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("max_tokens", [1, 60, 100_000])
def test_golden_20_and_23_micro_batches_do_not_change_the_step(model: Any, max_tokens: int) -> None:
    sums, gradient = _step(model, micro_batches(_batch(), 40))
    other_sums, other = _step(model, micro_batches(_batch(), max_tokens))
    assert (gradient - other).norm() <= 1e-5 * gradient.norm()
    assert other_sums.loss == pytest.approx(sums.loss, rel=1e-5)
    assert (other_sums.num_sequences, other_sums.num_tokens) == (5, 33)


@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_golden_23_uneven_and_empty_shards_add_up_to_the_whole_batch(model: Any, num_workers: int) -> None:
    _, whole = _step(model, micro_batches(_batch(), 40))
    total = torch.zeros_like(whole)
    for rank in range(num_workers):
        mine = shard(_batch(), rank=rank, num_workers=num_workers, max_tokens=40)
        calls: list[Tensor] = []

        def all_workers(tensor: Tensor, calls: list[Tensor] = calls) -> Tensor:
            calls.append(tensor)
            # The other workers' sequences; what else is added up does not enter the gradient.
            return torch.tensor([5.0, 0.0], dtype=torch.float64) if len(calls) == 1 else tensor + 1

        total += _step(model, mine, all_workers)[1]
    assert (total - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_golden_28_a_sequence_without_finite_advantage_is_dropped_and_counted(model: Any, poison: float) -> None:
    batch = _batch()
    scorer = ResponseScorer(model)

    def score(batch: Rows) -> Tensor:
        logp_N = scorer(batch)
        if not torch.is_grad_enabled():
            # The longest response is that of the poisoned example.
            counts_B = batch.row_N.bincount()
            logp_N[(counts_B[batch.row_N] == 12) & (batch.position_N % 3 == 0)] = poison
        return logp_N

    sums, gradient = _step(model, micro_batches(batch, 100), score=score)
    expected_sums, expected = _step(model, micro_batches([item for item in batch if len(item.response_ids) != 12], 100))
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    assert (sums.num_dropped, sums.num_sequences) == (1, 4)
    assert sums.loss == pytest.approx(expected_sums.loss, rel=1e-5)
    assert math.isfinite(sums.mean_advantage)


def test_a_batch_in_which_nothing_is_finite_is_an_error(model: Any) -> None:
    scorer = ResponseScorer(model)
    with pytest.raises(LearnerError, match="5 dropped"):
        _step(model, micro_batches(_batch(), 100), score=lambda batch: scorer(batch) * float("nan"))


def test_a_student_that_is_not_finite_is_an_error(model: Any) -> None:
    scorer = ResponseScorer(model)
    with pytest.raises(LearnerError, match="the loss is nan"):
        _step(
            model,
            micro_batches(_batch(), 100),
            score=lambda batch: scorer(batch) * (float("nan") if torch.is_grad_enabled() else 1.0),
        )


def test_golden_27_the_sampler_gap_is_the_mean_distance_over_comparable_tokens(model: Any) -> None:
    batch = _batch()
    scorer = ResponseScorer(model)
    known = []
    for index, item in enumerate(batch):
        with torch.no_grad():
            exact = scorer(_rows(item))
        known.append(replace(item, sampler_logprobs=tuple((exact - 0.25).tolist()), comparable=index != 2))
    assert _step(model, micro_batches(known, 100))[0].sampler_gap == pytest.approx(0.25, abs=1e-5)
    greedy = [replace(item, comparable=False) for item in known]
    assert _step(model, micro_batches(greedy, 100))[0].sampler_gap == 0


def test_each_example_takes_two_forwards_and_one_backward(model: Any) -> None:
    scorer = ResponseScorer(model)
    scored: list[bool] = []

    def score(batch: Rows) -> Tensor:
        scored.append(torch.is_grad_enabled())
        return scorer(batch)

    parts = micro_batches(_batch(), 40)
    _step(model, parts, score=score)
    assert scored == [False] * len(parts) + [True] * len(parts)


def test_a_taught_policy_finds_the_answer_likelier_where_hindsight_does(tmp_path: Path) -> None:
    model = load_policy(tiny_policy(tmp_path)).eval()
    (item,) = _batch()[:1]
    scorer = ResponseScorer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.no_grad():
        before = scorer(_rows(item))
        advantage = scorer(_rows(item, hindsight=True)) - before
    model.zero_grad()
    run_step([(item,)], score=scorer, backward=lambda loss, last: loss.backward(), total=lambda tensor: tensor)
    optimizer.step()
    with torch.no_grad():
        assert ((scorer(_rows(item)) - before) * advantage).sum() > 0


def _batch() -> list[Example]:
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (n,), generator=generator).tolist())

    made = []
    for index, (num_prompt, num_block, num_response) in enumerate(
        [(5, 4, 7), (9, 6, 1), (2, 11, 12), (1, 1, 3), (20, 5, 10)]
    ):
        prompt = ids(num_prompt)
        made.append(
            Example(
                interaction_id=f"e{index}",
                prompt_ids=prompt,
                hindsight_ids=prompt + ids(num_block),
                response_ids=ids(num_response),
                sampler_logprobs=(-1.0,) * num_response,
                temperature=(1.0, 0.7)[index % 2],
                comparable=True,
            )
        )
    return made


def _rows(item: Example, *, hindsight: bool = False) -> Rows:
    from sdpo_ray.distill.packing import rows

    return rows((item,), hindsight=hindsight)


def _step(
    model: Any,
    parts: list[tuple[Example, ...]],
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    score: Callable[[Rows], Tensor] | None = None,
) -> tuple[StepSums, Tensor]:
    """The sums of one step and its gradient as one vector."""
    model.zero_grad()
    sums = run_step(
        parts, score=score or ResponseScorer(model), backward=lambda loss, last: loss.backward(), total=total
    )
    return sums, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
