"""The kinds of teacher. Numbers in names are those of the algorithm's golden tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpo_ray.config import DistillConfig
from sdpo_ray.config.distill import LoraConfig, TeacherConfig
from sdpo_ray.distill.data.packing import micro_batches
from sdpo_ray.distill.loss.step import run_step
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model import lora_adapter
from sdpo_ray.distill.model.load import load_packed
from tests.support.builders import tiny_policy
from tests.support.training_batches import SIGNALS, batch, gradient, learns, policy, step

_LORA = LoraConfig(rank=4, alpha=8)


def _parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2, 3), value)) for value in values]


def _set(parameters: list[nn.Parameter], *values: float) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.fill_(value)


def _seen(teacher: Teacher, parameters: list[nn.Parameter]) -> list[Tensor]:
    with teacher.weights():
        return [parameter.detach().clone() for parameter in parameters]


def _values(tensors: list[Tensor]) -> list[float]:
    for tensor in tensors:
        assert (tensor == tensor.flatten()[0]).all()
    return [tensor.flatten()[0].item() for tensor in tensors]


def test_golden_10_an_average_of_rate_5_percent_keeps_95_percent_of_the_old_teacher() -> None:
    parameters = _parameters(1.0, -2.0)
    teacher = Teacher(TeacherConfig(kind="ema", ema_rate=0.05), parameters)
    _set(parameters, 3.0, 2.0)
    assert _values(_seen(teacher, parameters)) == [1.0, -2.0]
    teacher.follow()
    assert _values(_seen(teacher, parameters)) == pytest.approx([0.95 * 1 + 0.05 * 3, 0.95 * -2 + 0.05 * 2])
    teacher.follow()
    assert _values(_seen(teacher, parameters)) == pytest.approx([3 - 2 * 0.95**2, 2 - 4 * 0.95**2])


def test_golden_10_an_average_of_rate_1_is_the_live_policy_and_of_rate_0_the_frozen_one() -> None:
    for rate, kind in ((1.0, "live"), (0.0, "frozen")):
        parameters = _parameters(1.0, -2.0)
        average = Teacher(TeacherConfig(kind="ema", ema_rate=rate), parameters)
        other = Teacher(TeacherConfig(kind=kind), parameters)
        for values in ((3.0, 2.0), (0.3, 5.0)):
            _set(parameters, *values)
            for teacher in (average, other):
                teacher.follow()
            for one, same in zip(_seen(average, parameters), _seen(other, parameters), strict=True):
                assert torch.equal(one, same)
        assert _values(_seen(other, parameters)) == pytest.approx([0.3, 5.0] if kind == "live" else [1.0, -2.0])


@pytest.mark.parametrize("kind", ["live", "ema", "frozen", "adapter_off"])
def test_the_student_s_weights_are_restored_even_after_an_exception(kind: Any) -> None:
    parameters = _parameters(1.0, -2.0)
    teacher = Teacher(TeacherConfig(kind=kind), parameters)
    _set(parameters, 3.0, 2.0)
    places = [parameter.data_ptr() for parameter in parameters]
    with pytest.raises(RuntimeError, match="lost"), teacher.weights():
        raise RuntimeError("lost")
    assert _values([parameter.detach() for parameter in parameters]) == [3.0, 2.0]
    assert [parameter.data_ptr() for parameter in parameters] == places


def test_a_teacher_resumes_from_saved_weights_or_from_those_in_the_model() -> None:
    parameters = _parameters(1.0, -2.0)
    teacher = Teacher(TeacherConfig(kind="ema", ema_rate=0.5), parameters)
    teacher.load([torch.full((2, 3), 5.0), torch.full((2, 3), 7.0)])
    assert _values(_seen(teacher, parameters)) == [5.0, 7.0]
    with teacher.weights():
        _set(parameters, 9.0, 11.0)
        teacher.keep()
    assert _values(_seen(teacher, parameters)) == [9.0, 11.0]
    assert _values([parameter.detach() for parameter in parameters]) == [1.0, -2.0]


def test_golden_25_an_average_in_fp32_follows_steps_that_bf16_loses() -> None:
    (parameter,) = [nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    teacher = Teacher(TeacherConfig(kind="ema", ema_rate=1e-4), [parameter])
    rounded = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(2.0)
    for _ in range(100):
        teacher.follow()
        rounded.lerp_(parameter.detach(), 1e-4)
    assert (rounded == 1).all()
    assert teacher.shadow[0].tolist() == pytest.approx([2 - (1 - 1e-4) ** 100] * 4, rel=1e-5)
    with teacher.weights():
        assert parameter.dtype == torch.bfloat16
        assert (parameter == torch.tensor(2 - (1 - 1e-4) ** 100).bfloat16()).all()


def _adapted(path: Path) -> tuple[Any, list[nn.Parameter]]:
    """A model with a trained adapter, and its trainable parameters."""
    model = load_packed(path)
    lora_adapter.inject(model, _LORA, parent=path, base=path, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _disturb(trained)
    return model, trained


def _disturb(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_golden_11_with_its_adapter_off_the_teacher_scores_bitwise_as_the_base(path: Path) -> None:
    model, trained = _adapted(path)
    base, ids_1S = load_packed(path), torch.arange(40)[None]
    packed: dict[str, Any] = {"cu_seq_lens_q": torch.tensor([0, 25, 40], dtype=torch.int32), "max_length_q": 25}
    teacher = Teacher(TeacherConfig(kind="adapter_off"), trained)
    with torch.no_grad():
        expected = base(input_ids=ids_1S, use_cache=False, **packed).logits
        assert (model(input_ids=ids_1S, use_cache=False, **packed).logits - expected).abs().max() > 0.1
        with teacher.weights():
            assert torch.equal(model(input_ids=ids_1S, use_cache=False, **packed).logits, expected)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("kind", ["ema", "frozen", "adapter_off"])
def test_golden_10_with_each_kind_an_empty_follow_up_has_no_effect_relative_to_the_teacher_s_own_score(
    kind: Any, signal: dict[str, Any], path: Path
) -> None:
    model, trained = _adapted(path)
    teacher = Teacher(TeacherConfig(kind=kind), trained)
    _disturb(trained)
    parts = micro_batches([replace(item, hindsight_ids=item.prompt_ids) for item in batch()], 64)

    def learn(*, baselined: bool) -> tuple[float, Tensor]:
        model.zero_grad()
        learner = replace(policy(model, baselined=baselined), teacher=teacher.weights)
        sums = run_step(parts, learner, learns(**signal))
        return sums.abs_advantage, torch.cat([parameter.grad.flatten() for parameter in trained])

    advantage, found = learn(baselined=True)
    assert advantage == 0
    assert found.abs().max() == 0
    advantage, found = learn(baselined=False)
    assert advantage > 1e-3
    assert found.abs().max() > 1e-5


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
def test_a_teacher_of_all_parameters_equals_another_model_with_its_weights(
    signal: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    model, other = load_packed(path), load_packed(tiny_policy(tmp_path, seed=1))
    parameters = list(model.parameters())
    teacher = Teacher(TeacherConfig(kind="frozen"), parameters)
    teacher.load([parameter.detach() for parameter in other.parameters()])
    config: DistillConfig = learns(**signal)
    parts = micro_batches(batch(), 64)
    for baselined in (False, True):
        expected_sums, expected = step(model, parts, config, policy(model, teacher=other, baselined=baselined))
        swapped = policy(model, baselined=baselined, own_head=True)
        sums, found = step(model, parts, config, replace(swapped, teacher=teacher.weights))
        assert torch.equal(found, expected)
        assert sums == expected_sums
    assert gradient(model).norm() > 0
