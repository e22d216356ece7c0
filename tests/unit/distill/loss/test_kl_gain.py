"""The gain of an adapter per token, against distributions computed by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.distill.loss.kl_gain import _TOKENS_PER_PASS, _gain
from sdpo_ray.distill.train.update_spec import GAINS_FILE, read_gains
from sdpo_ray.errors import DataError
from sdpo_ray.io.files import write_json
from sdpo_ray.records import Gain


class Context:
    """The fields of a packed row that the work reads."""

    def __init__(self, *temperatures: float) -> None:
        self.temperature_N = torch.tensor(temperatures)


def gained(told: Tensor, before: Tensor, after: Tensor, *temperatures: float) -> list[float]:
    """The gain for hidden states that are the logits themselves, with identity output weights."""
    context: Any = Context(*(temperatures or (1.0,) * len(told)))
    found: list[float] = _gain(context, told, before)(after, torch.eye(told.shape[1])).tolist()
    return found


def kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p / q).log()).sum())


TOLD, BEFORE, AFTER = (torch.tensor([[3.0, 1, 1]]), torch.tensor([[1.0, 1, 3]]), torch.tensor([[2.0, 1, 2]]))


def test_the_gain_is_the_difference_of_two_divergences():
    p, q, r = (each[0].softmax(-1) for each in (BEFORE, TOLD, AFTER))
    assert gained(TOLD, BEFORE, AFTER) == pytest.approx([kl(p, q) - kl(r, q)])
    assert gained(TOLD, AFTER, BEFORE) == pytest.approx([kl(r, q) - kl(p, q)])


def test_an_unchanged_policy_gains_exactly_zero_and_the_target_itself_gains_the_whole_divergence():
    assert gained(TOLD, BEFORE, BEFORE) == [0.0]
    assert gained(TOLD, BEFORE, TOLD) == pytest.approx([kl(BEFORE[0].softmax(-1), TOLD[0].softmax(-1))])


def test_a_policy_that_makes_the_response_unlikely_does_not_gain():
    """The advantage times the change in log p would be positive: the response was token 0, with a small negative A."""
    told, before, broken = torch.tensor([[0.0, 0.2, 0]]), torch.tensor([[0.2, 0.0, 0]]), torch.tensor([[-9.0, -9, 9]])
    before_0, told_0, broken_0 = (each.log_softmax(-1)[0, 0] for each in (before, told, broken))
    assert (told_0 - before_0) * (broken_0 - before_0) > 1, "the product of the two would praise it"
    assert gained(told, before, broken)[0] < -0.5


def test_each_token_is_compared_at_its_own_temperature_and_chunks_change_nothing():
    torch.manual_seed(0)
    count = 2 * _TOKENS_PER_PASS + 3
    told, before, after = torch.randn(3, count, 5)
    temperatures = [0.5 + 0.01 * n for n in range(count)]
    found = gained(told, before, after, *temperatures)
    for n in (0, _TOKENS_PER_PASS - 1, _TOKENS_PER_PASS, count - 1):
        p, q, r = ((each[n] / temperatures[n]).softmax(-1) for each in (before, told, after))
        assert found[n] == pytest.approx(kl(p, q) - kl(r, q), abs=1e-5)


def test_gains_are_read_back_as_they_were_written(tmp_path: Path):
    assert read_gains(tmp_path) == ()
    gain = Gain(interaction_id="a", conversation="c", num_tokens=3, nats=0.25)
    write_json(tmp_path / GAINS_FILE, [gain])
    assert read_gains(tmp_path) == (gain,)
    (tmp_path / GAINS_FILE).write_text('{"nats": 3}')
    with pytest.raises(DataError, match=GAINS_FILE):
        read_gains(tmp_path)
