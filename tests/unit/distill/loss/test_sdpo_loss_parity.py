"""Parity of our losses with other implementations. Numbers in names are those of the algorithm's golden tests.

The authors' two losses are reimplemented on padded tensors; TRL's are TRL's own functions.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.data.packing import micro_batches
from sdpo_ray.distill.model.load import load_packed, load_policy
from tests.support.training_batches import alone, chosen, gradient, learns, made, step, table

_EXACT = {"rtol": 1e-6, "atol": 1e-9}


def official_offline_loss(student_BT: Tensor, teacher_BT: Tensor, is_pad_BT: Tensor, ignore_first_k: int) -> Tensor:
    """`offline_sdpo_trainer.py`: a mean over the tokens of each sequence but its first, then over sequences."""
    position_T = torch.arange(student_BT.shape[1])
    mask_BT = (~is_pad_BT & (position_T >= ignore_first_k)).to(student_BT)
    advantage_BT = (teacher_BT - student_BT.detach()) * mask_BT
    per_sequence_B = (advantage_BT * student_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
    return -per_sequence_B.mean()


def official_online_loss(
    student_BT: Tensor, teacher_BT: Tensor, old_BT: Tensor, is_pad_BT: Tensor, epsilon: float = 0.2
) -> Tensor:
    """`online_sdpo_trainer.py`: advantages centred over each sequence, PPO's pessimistic minimum, the same means."""
    mask_BT = (~is_pad_BT).to(student_BT)
    count_B1 = mask_BT.sum(1, keepdim=True).clamp(min=1)
    advantage_BT = (teacher_BT - old_BT) * mask_BT
    advantage_BT = (advantage_BT - advantage_BT.sum(1, keepdim=True) / count_B1) * mask_BT
    ratio_BT = (student_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - epsilon, 1 + epsilon)
    per_token_BT = -torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    return ((per_token_BT * mask_BT).sum(1) / count_B1[:, 0]).mean()


class _Padded:
    """Three answers of five, one and three tokens out of seven, as padded tensors and as packed ones."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths = (5, 1, 3)
        student_BTV, self.teacher_BTV = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
        self.student_BTV = student_BTV.requires_grad_()
        self.target_BT = torch.randint(0, 7, (3, 5), generator=generator)
        self.is_pad_BT = torch.arange(5) >= torch.tensor(self.lengths)[:, None]

    def logps(self) -> tuple[Tensor, Tensor]:
        student_BT, teacher_BT = (
            each.log_softmax(-1).gather(-1, self.target_BT[..., None])[..., 0]
            for each in (self.student_BTV, self.teacher_BTV)
        )
        return student_BT, teacher_BT

    def ours(self, config: DistillConfig, first_scored: int = 0) -> tuple[Tensor, Tensor]:
        """Our loss and its gradient of the padded logits."""
        scored_BT = ~self.is_pad_BT & (torch.arange(5) >= first_scored)
        counts_B = scored_BT.sum(1)
        row_N = torch.arange(3).repeat_interleave(counts_B)
        student = table(
            self.target_BT[scored_BT],
            config,
            weight_N=1.0 / (3 * counts_B.double()[row_N]),
            teacher_NV=self.teacher_BTV[scored_BT],
            row_N=row_N,
        )
        loss = student.loss(self.student_BTV[scored_BT], torch.eye(7, dtype=torch.float64))
        return loss.detach(), torch.autograd.grad(loss, self.student_BTV)[0]


@pytest.fixture
def padded() -> _Padded:
    return _Padded()


@pytest.mark.parametrize("ignore_first_k", [0, 2])
def test_golden_13_the_official_offline_loss_on_fixed_tensors(padded: _Padded, ignore_first_k: int) -> None:
    theirs = official_offline_loss(*padded.logps(), padded.is_pad_BT, ignore_first_k)
    loss, gradient_BTV = padded.ours(learns(), ignore_first_k)
    torch.testing.assert_close(loss, theirs.detach(), **_EXACT)
    torch.testing.assert_close(gradient_BTV, torch.autograd.grad(theirs, padded.student_BTV)[0], **_EXACT)


def test_golden_12_and_13_the_official_online_loss_on_fixed_tensors_is_ppo_s_and_reinforce_at_ratio_1(
    padded: _Padded,
) -> None:
    student_BT, teacher_BT = padded.logps()
    theirs = official_online_loss(student_BT, teacher_BT, student_BT.detach(), padded.is_pad_BT)
    # Only the gradient is the same: PPO's value is that of the ratios, which are 1.
    _, gradient_BTV = padded.ours(learns(baseline="seq_mean"))
    torch.testing.assert_close(gradient_BTV, torch.autograd.grad(theirs, padded.student_BTV)[0], **_EXACT)


_ITEMS = [made("a", 5, 4, 7), made("b", 9, 6, 1), made("c", 2, 11, 12), made("d", 4, 3, 3), made("e", 20, 5, 2)]


_IGNORE_FIRST_K = 2
"""Of the authors' offline script."""


def _official(preset: str, **values: Any) -> DistillConfig:
    """The settings of the authors' scripts but for 8-bit AdamW and bf16 weights, which need a GPU."""
    return DistillConfig.model_validate({"preset": preset} | values)


def _whole(model: Any, items: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded log-probs of whole answers, the student's with gradient, and where padding is."""
    width = max(len(item.response_ids) for item in items)
    student_BT, teacher_BT = torch.zeros(2, len(items), width, dtype=torch.float64)
    is_pad_BT = torch.ones(len(items), width, dtype=torch.bool)
    for row, item in enumerate(items):
        places_T = torch.arange(len(item.response_ids))
        log_p_T, log_q_T = (chosen(alone(model, item, hindsight=hindsight), item) for hindsight in (False, True))
        student_BT = student_BT.index_put((torch.tensor(row), places_T), log_p_T)
        teacher_BT[row, places_T] = log_q_T.detach()
        is_pad_BT[row, places_T] = False
    return student_BT, teacher_BT, is_pad_BT


def test_golden_13_the_official_offline_loss_through_a_whole_step(path: Path) -> None:
    context = {"template": "offline_code", "ignore_first_k": _IGNORE_FIRST_K}
    config = _official("paper_offline", batch_size=128, max_grad_norm=10.0, context=context)
    k = config.context.ignore_first_k
    assert k == 2
    plain = load_policy(path).double()
    theirs = official_offline_loss(*_whole(plain, _ITEMS), k)
    theirs.backward()
    items = [replace(item, first_scored=min(k, len(item.response_ids))) for item in _ITEMS]
    model = load_packed(path).double()
    sums, ours = step(model, micro_batches(items, 64), config)
    assert sums.loss == pytest.approx(theirs.item(), rel=1e-6)
    assert (ours - gradient(plain)).norm() <= 1e-6 * ours.norm()
    assert (sums.num_sequences, sums.num_tokens) == (5, 5 + 0 + 10 + 1 + 0)


def test_golden_13_the_official_online_loss_through_a_whole_step(path: Path) -> None:
    plain = load_policy(path).double()
    student_BT, teacher_BT, is_pad_BT = _whole(plain, _ITEMS)
    official_online_loss(student_BT, teacher_BT, student_BT.detach(), is_pad_BT).backward()
    model = load_packed(path).double()
    _, ours = step(model, micro_batches(_ITEMS, 64), _official("paper_online", signal={"baseline": "seq_mean"}))
    assert (ours - gradient(plain)).norm() <= 1e-6 * ours.norm()


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's own loss functions."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    return pytest.importorskip("trl.experimental.sdpo.loss_utils", reason="TRL is not installed: parity is not shown")


def _averaged(padded: _Padded, per_token_BT: Tensor) -> Tensor:
    mask_BT = (~padded.is_pad_BT).double()
    return ((per_token_BT * mask_BT).sum(1) / mask_BT.sum(1)).mean()


def test_golden_14_trl_s_sampled_token_loss(padded: _Padded, trl: Any) -> None:
    theirs = _averaged(
        padded,
        trl.compute_sampled_token_self_distillation_loss(
            padded.student_BTV, padded.teacher_BTV, padded.target_BT, distillation_alpha=1.0
        ),
    )
    loss, gradient_BTV = padded.ours(learns())
    torch.testing.assert_close(loss, theirs.detach(), **_EXACT)
    torch.testing.assert_close(gradient_BTV, torch.autograd.grad(theirs, padded.student_BTV)[0], **_EXACT)


@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_golden_14_trl_s_top_k_loss_with_its_tail(padded: _Padded, trl: Any, top_k: int) -> None:
    theirs = _averaged(
        padded,
        trl.compute_topk_self_distillation_loss(
            padded.student_BTV,
            padded.teacher_BTV,
            distillation_topk=top_k,
            distillation_alpha=1.0,
            distillation_add_tail=True,
        ),
    )
    loss, gradient_BTV = padded.ours(learns(estimator="topk_reverse_kl", top_k=top_k))
    torch.testing.assert_close(loss, theirs.detach(), **_EXACT)
    torch.testing.assert_close(gradient_BTV, torch.autograd.grad(theirs, padded.student_BTV)[0], **_EXACT)


def test_golden_14_trl_s_full_logits_loss(padded: _Padded, trl: Any) -> None:
    theirs = _averaged(
        padded,
        trl.compute_full_logit_self_distillation_loss(padded.student_BTV, padded.teacher_BTV, distillation_alpha=1.0),
    )
    loss, gradient_BTV = padded.ours(learns(estimator="full_kl"))
    torch.testing.assert_close(loss, theirs.detach(), **_EXACT)
    torch.testing.assert_close(gradient_BTV, torch.autograd.grad(theirs, padded.student_BTV)[0], **_EXACT)


def test_golden_14_supervised_learning_is_torch_s_cross_entropy(path: Path) -> None:
    plain = load_policy(path).double()
    losses = []
    for item in _ITEMS:
        ids = torch.tensor([item.prompt_ids + item.response_ids])
        labels = torch.tensor([(-100,) * len(item.prompt_ids) + item.response_ids])
        losses.append(plain(input_ids=ids, labels=labels).loss)
    torch.stack(losses).mean().backward()
    model = load_packed(path).double()
    sums, ours = step(model, micro_batches(_ITEMS, 64), learns(objective="sft"))
    assert sums.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    assert (ours - gradient(plain)).norm() <= 1e-6 * ours.norm()
