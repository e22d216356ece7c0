"""One step of a tiny policy. Numbers in names are those of the golden tests in the algorithm's notes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import PROMPT, Example
from sdpo_ray.distill.data.packing import MicroBatch, PackedRows, micro_batches, rows, shard
from sdpo_ray.distill.loss.drift import load_base, view_of
from sdpo_ray.distill.model.attention import PACKED, register
from sdpo_ray.distill.model.lm_head import logprobs
from sdpo_ray.distill.model.load import load_packed, load_policy
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.errors import ConfigError, LearnerError
from tests.support.builders import tiny_policy
from tests.support.training_batches import CPU, SIGNALS, alone, batch, chosen, gradient, learns, made, policy, step


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another policy of the same shape: a teacher that is not the student."""
    return tiny_policy(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def model(path: Path) -> Any:
    return load_packed(path)


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


_OBJECTIVES = {name: learns(**signal) for name, signal in SIGNALS.items()} | {"supervised": learns(objective="sft")}


@pytest.mark.parametrize("config", _OBJECTIVES.values(), ids=_OBJECTIVES)
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


def test_golden_12_tis_through_a_step(model: Any) -> None:
    items = [made("x", 5, 4, 7), made("y", 3, 3, 5, first_scored=2)]
    _, off = step(model, [tuple(items)], learns())
    exact = [replace(item, sampler_logprobs=_sampler(item, _scores(model, item))) for item in items]
    on_sums, on = step(model, [tuple(exact)], learns(tis_cap=2.0))
    assert (on - off).norm() <= 1e-5 * off.norm()
    assert on_sums.tis_capped == 0
    rarer = [replace(item, sampler_logprobs=tuple(logp - 3 for logp in item.sampler_logprobs)) for item in exact]
    capped_sums, capped = step(model, [tuple(rarer)], learns(tis_cap=2.0))
    assert (capped - 2 * off).norm() <= 1e-5 * off.norm()
    assert capped_sums.tis_capped == 1
    assert torch.equal(step(model, [tuple(items)], learns(tis_cap=2.0))[1], off)
    assert torch.equal(step(model, [tuple(rarer)], learns())[1], off)


def test_golden_26_scores_of_the_same_contexts_in_different_packs_differ_by_rounding_only(model: Any) -> None:
    items = [made(f"n{index}", 3 + 7 * index, 0, 5 + 3 * index) for index in range(8)]
    found = {}
    for parts in (micro_batches(items, 1), micro_batches(items, 90), [tuple(items)], [tuple(reversed(items))]):
        for part in parts:
            for item, scores in zip(part, _packed_scores(model, part), strict=True):
                found.setdefault(item.interaction_id, []).append(scores)
    noise = max((scores - each[0]).abs().max().item() for each in found.values() for scores in each)
    assert {len(each) for each in found.values()} == {4}
    assert noise < 1e-5


def test_golden_27_the_sampler_gap_is_the_mean_absolute_difference_over_known_tokens(model: Any) -> None:
    known = [
        replace(item, sampler_logprobs=() if index == 3 else _sampler(item, _scores(model, item) - 0.25))
        for index, item in enumerate(batch())
    ]
    assert step(model, micro_batches(known, 64), learns())[0].sampler_gap == pytest.approx(0.25, abs=1e-5)
    unknown = [replace(item, sampler_logprobs=()) for item in known]
    assert step(model, micro_batches(unknown, 64), learns())[0].sampler_gap == 0


def test_a_step_reports_entropy_advantage_and_kl_to_the_base_as_means_over_tokens(path: Path, model: Any) -> None:
    plain, items = load_policy(path), batch()
    with torch.no_grad():
        logp = [chosen(alone(plain, item, hindsight=False), item) for item in items]
        advantage = torch.cat([chosen(alone(plain, item, hindsight=True), item) for item in items]) - torch.cat(logp)
    sums, _ = step(model, micro_batches(items, 64), learns(), policy(model))
    assert sums.entropy == pytest.approx(-torch.cat(logp).mean().item(), rel=1e-5)
    assert sums.mean_advantage == pytest.approx(advantage.mean().item(), rel=1e-4)
    assert sums.abs_advantage == pytest.approx(advantage.abs().mean().item(), rel=1e-4)
    assert sums.num_base_tokens == 0


@pytest.mark.parametrize("objective", _OBJECTIVES)
@pytest.mark.parametrize("same_head", [False, True])
def test_kl_to_the_base_is_that_of_whole_distributions_at_the_watched_responses(
    objective: str, same_head: bool, path: Path, model: Any, tmp_path: Path
) -> None:
    plain, items = load_policy(path), batch()
    base = load_policy(path if same_head else tiny_policy(tmp_path, seed=3))
    watched = [items[1], items[3], made("elsewhere", 3, 3, 4)]
    config = _OBJECTIVES[objective]
    scorer = load_base(path if same_head else tmp_path, config, CPU)
    if same_head:
        with torch.no_grad():
            for layer in (base.model.layers[0], scorer.body.layers[0]):
                layer.mlp.up_proj.weight.add_(0.5)
    learner = policy(model, base_view=view_of(scorer, watched, config, same_head=same_head))
    sums, watched_gradient = step(model, micro_batches(items, 64), config, learner)
    _, unwatched = step(model, micro_batches(items, 64), config)
    with torch.no_grad():
        log_p, log_base = (
            torch.cat([alone(each, item, hindsight=False) for item in watched[:2]]) for each in (plain, base)
        )
    expected = (log_p.exp() * (log_p - log_base)).sum(-1)
    assert sums.num_base_tokens == len(expected)
    assert sums.kl_to_base == pytest.approx(expected.mean().item(), rel=1e-4)
    assert torch.equal(watched_gradient, unwatched), "the monitor does not change the gradient"


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


_PENALISED = {name: learns(kl_penalty=0.2, **signal) for name, signal in SIGNALS.items()} | {
    "supervised": learns(objective="sft", kl_penalty=0.2)
}


@pytest.mark.parametrize("objective", _OBJECTIVES)
def test_the_kl_penalty_changes_the_gradient_of_each_token_with_a_base_score(
    objective: str, path: Path, model: Any
) -> None:
    plain, items = load_policy(path).double(), batch()
    base = {item.interaction_id: torch.linspace(-9, -1, len(item.response_ids) - item.first_scored) for item in items}
    del base["e"]
    pull = torch.zeros((), dtype=torch.float64)
    for item in items:
        if item.interaction_id in base:
            logp_T = chosen(alone(plain, item, hindsight=False), item)
            difference_T = logp_T.detach() - base[item.interaction_id]
            pull = pull + 0.2 * item.weight * (difference_T * logp_T).mean() / 5
    pull.backward()
    parts, learner = micro_batches(items, 64), policy(model.double(), base_logprobs=base)
    _, penalised = step(model, parts, _PENALISED[objective], learner)
    _, free = step(model, parts, _OBJECTIVES[objective], learner)
    theirs = gradient(plain)
    assert (penalised - free - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("signal", [{}, {"estimator": "topk_reverse_kl"}, {"baseline": "token_kl"}], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("baselined", [False, True])
def test_golden_28_a_sequence_with_teacher_scores_that_are_not_finite_is_dropped_and_counted(
    poison: float, signal: dict[str, Any], baselined: bool, model: Any
) -> None:
    items = batch()
    scorer = PackedLM(model)

    def run(context: PackedRows, work: Any) -> Any:
        found = scorer(context, work)
        if torch.is_grad_enabled():
            return found
        # Two responses have ten scored tokens.
        lengths_B = context.row_N.bincount()
        poisoned_N = (lengths_B[context.row_N] == 10) & (torch.arange(len(context.row_N)) % 3 == 0)
        # Poison the hindsight context, or with `baselined` only the prompt's.
        if baselined == (len(context.ids_1S[0]) == sum(len(i.prompt_ids) + len(i.response_ids) for i in items)):
            found[0][poisoned_N] = poison
        return found

    learner = policy(model, baselined=baselined)
    sums, found = step(model, [tuple(items)], learns(**signal), replace(learner, run=run))
    kept = [item for item in items if len(item.response_ids) - item.first_scored != 10]
    expected_sums, expected = step(model, [tuple(kept)], learns(**signal), learner)
    assert (sums.num_dropped, sums.num_sequences, expected_sums.num_sequences) == (2, 3, 3)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert sums.loss == pytest.approx(expected_sums.loss, rel=1e-5)
    assert math.isfinite(sums.mean_advantage)


def test_golden_28_a_batch_without_any_finite_teacher_scores_is_an_error(model: Any, other_path: Path) -> None:
    teacher = load_packed(other_path)
    with torch.no_grad():
        teacher.model.norm.weight[3] = math.nan
    with pytest.raises(LearnerError, match="5 dropped"):
        step(model, micro_batches(batch(), 64), learns(), policy(model, teacher=teacher))


@pytest.mark.parametrize("config", _OBJECTIVES.values(), ids=_OBJECTIVES)
def test_golden_28_a_policy_with_weights_that_are_not_finite_is_an_error(
    config: DistillConfig, model: Any, other_path: Path
) -> None:
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with pytest.raises(LearnerError, match="the loss is nan"):
        step(model, micro_batches(batch(), 64), config, policy(model, teacher=load_packed(other_path)))


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
    before = _scores(model, item)
    advantage = _scores(model, replace(item, prompt_ids=item.hindsight_ids)) - before
    step(model, [(item,)], learns())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert ((_scores(model, item) - before) * advantage).sum() > 0


def test_positions_start_at_zero_in_each_sequence(model: Any) -> None:
    # Rotary embeddings encode distances only, but schemes that depend on length encode the start of a sequence.
    seen: list[Tensor] = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    first, second = made("a", 2, 3, 4), made("b", 3, 0, 1)
    _packed_scores(model, (first, second))
    assert [each.tolist() for each in seen] == [[[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]]


def test_models_whose_logits_are_not_hidden_states_times_weights_are_refused(tmp_path: Path) -> None:
    model = load_policy(tiny_policy(tmp_path, tied=False))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(264))
    with pytest.raises(ConfigError, match="output bias"):
        PackedLM(model)
    model.lm_head.bias = None
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ConfigError, match="capped logits"):
        PackedLM(model)


def _packed_scores(model: Any, part: MicroBatch) -> tuple[Tensor, ...]:
    """log p of the scored tokens, by sequence."""
    context = rows(part, PROMPT, device=CPU)
    with torch.no_grad():
        found = PackedLM(model)(
            context,
            lambda hidden, weight: logprobs(hidden, weight, context.target_N, context.temperature_N, logits_mib=1),
        )
    split: tuple[Tensor, ...] = found.split([len(item.response_ids) - item.first_scored for item in part])
    return split


def _sampler(item: Example, scores: Tensor) -> tuple[float, ...]:
    """The given log-probs for the scored tokens, and other values for those before them."""
    return (-7.0,) * item.first_scored + tuple(scores.tolist())


def _scores(model: Any, item: Example) -> Tensor:
    return _packed_scores(model, (item,))[0]
