"""One step of a tiny policy: its loss and gradient against whole logits.

Numbers in test names are those of the golden tests in docs/algorithm.md.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.data.packing import MicroBatch, PackedRows, micro_batches, shard
from sdpo_ray.distill.model.attention import PACKED, register
from sdpo_ray.distill.model.load import load_packed, load_policy
from sdpo_ray.distill.model.packed_lm import PackedLM
from tests.support.packed_scores import OBJECTIVES, scores_of
from tests.support.training_batches import SIGNALS, alone, batch, chosen, gradient, learns, made, policy, step


def _bound(advantage: Tensor, signal: Any) -> Tensor:
    if signal.log_mix is not None:
        advantage = torch.log(signal.log_mix * advantage.exp() + 1 - signal.log_mix)
    return advantage if signal.clip is None else advantage.clamp(-signal.clip, signal.clip)


def _written_out(
    model: Any, item: Example, config: DistillConfig, teacher: Any = None, *, baselined: bool = False
) -> Tensor:
    """One sequence's mean over tokens, from whole log-probs of transformers' own attention."""
    signal = config.signal
    log_p_TV = alone(model, item, hindsight=False)
    with torch.no_grad():
        log_q_TV = alone(teacher or model, item, hindsight=True)
        if baselined:
            log_q_TV = (log_p_TV + log_q_TV - alone(teacher, item, hindsight=False)).detach()
        if baselined and config.signal.compares_distributions:
            log_q_TV = log_q_TV.log_softmax(-1)
    if config.objective == "sft":
        return -chosen(log_p_TV, item).mean()
    if signal.estimator == "sampled_token":
        logp_T = chosen(log_p_TV, item)
        advantage_T = _bound((chosen(log_q_TV, item) - logp_T).detach(), signal)
        if signal.baseline == "seq_mean":
            advantage_T = advantage_T - advantage_T.mean()
        if signal.baseline == "token_kl":
            # E[A] = -KL, to the mixture where there is one.
            mixed_TV = _bound((log_q_TV - log_p_TV).detach(), signal)
            advantage_T = advantage_T - (log_p_TV.exp().detach() * mixed_TV).sum(-1)
        return -(advantage_T * logp_T).mean()
    if signal.log_mix is not None:
        log_q_TV = (signal.log_mix * log_q_TV.exp() + (1 - signal.log_mix) * log_p_TV.exp().detach()).log()
    if signal.estimator == "full_kl":
        return (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean()
    top_TK = log_p_TV.detach().topk(signal.top_k).indices
    p_TK, q_TK = (each.exp().gather(-1, top_TK) for each in (log_p_TV, log_q_TV))
    left_p_T, left_q_T = 1 - p_TK.sum(-1), 1 - q_TK.sum(-1)
    return ((p_TK * (p_TK / q_TK).log()).sum(-1) + left_p_T * (left_p_T / left_q_T).log()).mean()


@pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)
def test_golden_20_a_packed_step_equals_that_of_single_sequences_and_whole_logits(
    config: DistillConfig, path: Path, model: Any
) -> None:
    plain, items = load_policy(path).double(), batch()
    expected = torch.stack([item.weight * _written_out(plain, item, config) for item in items]).mean()
    expected.backward()
    sums, ours = step(model.double(), micro_batches(items, 64), config)
    theirs = gradient(plain)
    assert sums.loss == pytest.approx(expected.item(), rel=1e-5)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (sums.num_sequences, sums.num_tokens, sums.num_dropped) == (5, 31, 0)


@pytest.mark.parametrize("baselined", [False, True])
@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_10_a_step_with_another_policy_as_teacher_equals_that_of_its_whole_logits(
    signal: dict[str, Any], baselined: bool, path: Path, other_path: Path, model: Any
) -> None:
    plain, other, items, config = (
        load_policy(path).double(),
        load_policy(other_path).double(),
        batch(),
        learns(**signal),
    )
    losses = [item.weight * _written_out(plain, item, config, other, baselined=baselined) for item in items]
    torch.stack(losses).mean().backward()
    learner = policy(model.double(), teacher=load_packed(other_path).double(), baselined=baselined)
    sums, ours = step(model, micro_batches(items, 64), config, learner)
    theirs = gradient(plain)
    assert sums.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_20_packing_order_and_empty_micro_batches_do_not_change_a_step(
    signal: dict[str, Any], model: Any
) -> None:
    config, items = learns(**signal), batch()
    sums, expected = step(model, micro_batches(items, 10_000), config)
    alternatives: list[list[MicroBatch]] = [
        micro_batches(items, 1),
        micro_batches(items, 64),
        [tuple(items)],
        [tuple(reversed(items))],
        [(), (items[3], items[0]), (), (items[4],), (items[2], items[1]), ()],
    ]
    for parts in alternatives:
        other_sums, other = step(model, parts, config)
        assert (other - expected).norm() <= 1e-5 * expected.norm()
        assert other_sums.loss == pytest.approx(sums.loss, rel=1e-5, abs=1e-7)
        assert (other_sums.num_sequences, other_sums.num_tokens) == (5, 31)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_20_chunks_of_a_large_vocabulary_s_logits_change_nothing(signal: dict[str, Any]) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    register()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    # 1 MiB holds the logits of eight tokens.
    config = Qwen3Config(vocab_size=32_000, intermediate_size=8, num_key_value_heads=1, initializer_range=0.5, **sizes)
    model = Qwen3ForCausalLM(config).eval()
    model.set_attn_implementation(PACKED)
    parts = micro_batches(batch(), 10_000)
    sums, whole = step(model, parts, learns(**signal))
    chunked_sums, chunked = step(model, parts, learns(logits_mib=1, **signal))
    assert (chunked - whole).norm() <= 1e-5 * whole.norm()
    assert chunked_sums.loss == pytest.approx(sums.loss, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("num_workers", [2, 3, 7])
def test_golden_23_gradients_of_uneven_and_empty_shards_sum_to_the_whole_batch_s(num_workers: int, model: Any) -> None:
    config = learns(log_mix=0.9)
    _, whole = step(model, micro_batches(batch(), 64), config)
    total = torch.zeros_like(whole)
    for rank in range(num_workers):
        mine = shard(batch(), rank=rank, num_workers=num_workers, max_tokens=64)
        calls: list[Tensor] = []

        def all_workers(tensor: Tensor, calls: list[Tensor] = calls) -> Tensor:
            calls.append(tensor)
            # Sequences and tokens of all workers; the other sums do not enter the gradient.
            return torch.tensor([5.0, 31.0, 0.0], dtype=torch.float64) if len(calls) == 1 else tensor

        total += step(model, mine, config, policy(model, total=all_workers))[1]
    assert (total - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_1_without_a_follow_up_advantage_and_gradient_are_exactly_zero(
    signal: dict[str, Any], model: Any
) -> None:
    items = [replace(item, hindsight_ids=item.prompt_ids) for item in batch()]
    sums, found = step(model, micro_batches(items, 64), learns(**signal))
    assert sums.abs_advantage == 0
    assert found.abs().max() == 0


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_10_with_another_policy_as_teacher_an_empty_follow_up_has_no_effect_only_relative_to_its_own_score(
    signal: dict[str, Any], model: Any, other_path: Path
) -> None:
    parts = micro_batches([replace(item, hindsight_ids=item.prompt_ids) for item in batch()], 64)
    teacher = load_packed(other_path)
    sums, found = step(model, parts, learns(**signal), policy(model, teacher=teacher, baselined=True))
    assert sums.abs_advantage == 0
    assert found.abs().max() == 0
    sums, found = step(model, parts, learns(**signal), policy(model, teacher=teacher))
    assert sums.abs_advantage > 0.01
    assert found.abs().max() > 1e-4


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_5_a_step_leaves_no_gradient_in_the_teacher(
    signal: dict[str, Any], model: Any, other_path: Path
) -> None:
    teacher = load_packed(other_path)
    for baselined in (False, True):
        step(model, micro_batches(batch(), 64), learns(**signal), policy(model, teacher=teacher, baselined=baselined))
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert gradient(model).norm() > 0


def test_golden_5_the_sampled_gradient_is_the_advantages_times_that_of_the_log_probs(path: Path, model: Any) -> None:
    plain = load_policy(path).double()
    surrogate = torch.zeros((), dtype=torch.float64)
    for item in batch():
        logp_T = chosen(alone(plain, item, hindsight=False), item)
        advantage_T = torch.tensor(
            [
                q - p
                for q, p in zip(chosen(alone(plain, item, hindsight=True), item).tolist(), logp_T.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        surrogate = surrogate - item.weight * (advantage_T @ logp_T) / len(advantage_T) / 5
    surrogate.backward()
    theirs, (_, ours) = gradient(plain), step(model.double(), micro_batches(batch(), 64), learns())
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("normalize", ["seq_mean_token_mean", "token_mean", "token_sum"])
def test_golden_9_normalisations_staleness_and_masked_answers_through_a_step(normalize: str, model: Any) -> None:
    first, second = made("first", 4, 3, 3), made("second", 6, 2, 5)
    masked = made("masked", 3, 3, 4, first_scored=4)
    alone_each = [step(model, [(item,)], learns(normalize="token_sum"))[1] for item in (first, second)]
    shares = {
        # Three sequences and eight scored tokens in the batch; the second one is half as heavy.
        "seq_mean_token_mean": (1 / (3 * 3), 0.5 / (3 * 5)),
        "token_mean": (1 / 8, 0.5 / 8),
        "token_sum": (1 / 3, 0.5 / 3),
    }[normalize]
    sums, found = step(model, [(first, masked), (replace(second, weight=0.5),)], learns(normalize=normalize))
    expected = shares[0] * alone_each[0] + shares[1] * alone_each[1]
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert (sums.num_sequences, sums.num_tokens) == (3, 8)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_golden_17_a_batch_without_scored_tokens_has_a_finite_loss_and_no_gradient(
    signal: dict[str, Any], model: Any
) -> None:
    items = [replace(item, first_scored=len(item.response_ids)) for item in batch()]
    sums, found = step(model, micro_batches(items, 64), learns(**signal))
    assert (sums.num_sequences, sums.num_tokens, sums.loss) == (5, 0, 0)
    assert found.abs().max() == 0


def test_a_scalar_baseline_is_subtracted_from_every_token_s_advantage(path: Path, model: Any) -> None:
    plain, items = load_policy(path).double(), batch()
    loss = torch.zeros((), dtype=torch.float64)
    for item in items:
        log_p_T, log_q_T = (chosen(alone(plain, item, hindsight=hindsight), item) for hindsight in (False, True))
        loss = loss - item.weight * (((log_q_T - log_p_T).detach() - 0.7) * log_p_T).mean() / 5
    loss.backward()
    _, ours = step(model.double(), micro_batches(items, 64), learns(baseline="ema_scalar"), baseline=0.7)
    theirs = gradient(plain)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_each_example_takes_two_forwards_and_one_backward_and_supervised_learning_one_forward(model: Any) -> None:
    scorer, seen = PackedLM(model), []

    def run(context: PackedRows, work: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return scorer(context, work)

    parts = micro_batches(batch(), 40)
    step(model, parts, learns(), policy(model, run=run))
    assert seen == [False] * len(parts) + [True] * len(parts)
    seen.clear()
    step(model, parts, learns(objective="sft"), policy(model, run=run))
    assert seen == [True] * len(parts)


def test_the_last_backward_pass_of_a_step_is_marked(model: Any) -> None:
    marks = []

    def backward(loss: Tensor, last: bool) -> None:
        marks.append(last)
        loss.backward()

    parts = [*micro_batches(batch(), 40), ()]
    step(model, parts, learns(), policy(model, backward=backward))
    assert marks == [False] * (len(parts) - 1) + [True]


def test_a_step_raises_a_response_s_probability_where_hindsight_does(model: Any) -> None:
    item = made("taught", 5, 4, 7)
    before = scores_of(model, item)
    advantage = scores_of(model, replace(item, prompt_ids=item.hindsight_ids)) - before
    step(model, [(item,)], learns())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert ((scores_of(model, item) - before) * advantage).sum() > 0
