"""Chunked log-probs of responses. Numbers in names are those of the golden tests in the algorithm's notes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.distill.export import load_policy
from sdpo_ray.distill.hindsight import Example
from sdpo_ray.distill.logprobs import ResponseScorer, linear_logprobs
from sdpo_ray.distill.packing import rows
from sdpo_ray.errors import ConfigError
from tests.builders import tiny_policy


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_policy(tiny_policy(tmp_path_factory.mktemp("policy"), tied=request.param)).eval()


@pytest.fixture
def examples() -> tuple[Example, ...]:
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (n,), generator=generator).tolist())

    made = []
    for index, (num_prompt, num_block, num_response) in enumerate([(5, 4, 7), (9, 0, 1), (2, 11, 12), (1, 1, 3)]):
        prompt = ids(num_prompt)
        made.append(
            Example(
                interaction_id=f"e{index}",
                prompt_ids=prompt,
                hindsight_ids=prompt + ids(num_block),
                response_ids=ids(num_response),
                sampler_logprobs=(-1.0,) * num_response,
                temperature=(1.0, 0.5, 1.5, 1.0)[index],
                comparable=True,
            )
        )
    return tuple(made)


def test_golden_21_gradients_are_right_in_fp64() -> None:
    torch.manual_seed(0)
    hidden_ND = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    target_N = torch.tensor([0, 8, 3, 3, 1, 7, 2])
    temperature_N = torch.tensor([1.0, 0.7, 1.0, 2.0, 1.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_logprobs(hidden, weight, target_N, temperature_N, 3), (hidden_ND, weight_VD)
    )


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_golden_20_chunks_do_not_matter(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    hidden_ND, weight_VD = torch.randn(7, 16), torch.randn(50, 16)
    target_N, temperature_N, upstream_N = torch.randint(0, 50, (7,)), torch.rand(7) + 0.5, torch.randn(7)

    def both(chunked: bool) -> tuple[torch.Tensor, ...]:
        hidden, weight = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        if chunked:
            logp = linear_logprobs(hidden, weight, target_N, temperature_N, chunk_tokens)
        else:
            logp = (hidden @ weight.T / temperature_N[:, None]).log_softmax(-1)[range(7), target_N]
        return logp.detach(), *torch.autograd.grad(logp @ upstream_N, (hidden, weight))

    for ours, naive in zip(both(True), both(False), strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hindsight", [False, True])
def test_scores_are_those_of_whole_logits_one_sequence_at_a_time(
    model: Any, examples: tuple[Example, ...], hindsight: bool
) -> None:
    scored = ResponseScorer(model)(rows(examples, hindsight=hindsight))
    torch.testing.assert_close(scored, torch.cat([_naive(model, each, hindsight) for each in examples]))


def test_golden_20_gradients_do_not_depend_on_packing_order_or_filling(
    model: Any, examples: tuple[Example, ...]
) -> None:
    wide = replace(examples[0], interaction_id="wide", prompt_ids=(7,) * 60)
    together = _gradients(model, [(*examples, wide)])
    for apart in ([(each,) for each in (*examples, wide)], [(wide, examples[2]), examples[:2], (), examples[3:]]):
        for one, other in zip(together, _gradients(model, apart), strict=True):
            assert (one - other).norm() <= 1e-5 * one.norm()


def test_nothing_to_score_gives_zero_gradients_and_not_none(model: Any) -> None:
    for gradient in _gradients(model, [()]):
        assert gradient.abs().sum() == 0


def test_an_output_bias_is_refused(tmp_path: Path) -> None:
    model = load_policy(tiny_policy(tmp_path, tied=False))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(264))
    with pytest.raises(ConfigError, match="output bias"):
        ResponseScorer(model)


def _naive(model: Any, item: Example, hindsight: bool) -> torch.Tensor:
    context = item.hindsight_ids if hindsight else item.prompt_ids
    ids = torch.tensor([context + item.response_ids])
    logits = model(input_ids=ids).logits[0] / item.temperature
    return logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[len(context) - 1 :, 0]


def _gradients(model: Any, packs: list[tuple[Example, ...]]) -> list[torch.Tensor]:
    """The gradient of a sum in which each token counts by its place in its response."""
    scorer = ResponseScorer(model)
    model.zero_grad()
    for pack in packs:
        places = [float(place) for item in pack for place in range(1, len(item.response_ids) + 1)]
        (scorer(rows(pack, hindsight=False)) * torch.tensor(places)).sum().backward()
    gradients = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        gradients.append(parameter.grad.clone())
    return gradients
