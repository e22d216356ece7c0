"""Adapters: inserted, merged, saved in peft's format, continued by the next update. Golden test 11."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.config.distill import LoraConfig
from sdpo_ray.distill.model import lora_adapter
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.train.export import read_tensors
from sdpo_ray.errors import LearnerError
from sdpo_ray.io.adapter_config import ADAPTER
from tests.support.builders import tiny_policy

_LORA = LoraConfig(rank=4, alpha=12)
_IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("base"), tied=request.param)


def _adapted(parent: Path, *, base: Path | None = None, seed: int = 0) -> Any:
    model = load_policy(base or parent)
    lora_adapter.inject(model, _LORA, parent=parent, base=base or parent, seed=seed)
    return model


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}


def _disturb(model: Any) -> None:
    """Give the adapter nonzero B matrices, as after training: peft starts them from zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for each in _trained(model).values():
            each += 0.2 * torch.randn(each.shape, generator=generator)


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=_IDS, use_cache=False).logits
    return found


def test_a_new_adapter_changes_nothing_and_is_trainable_in_every_linear_layer_of_the_body(base: Path) -> None:
    plain, model = load_policy(base), _adapted(base)
    assert torch.equal(_logits(model), _logits(plain))
    linear = {name for name, each in plain.model.named_modules() if isinstance(each, torch.nn.Linear)}
    assert len(linear) == 2 * 7
    assert {name.split(".lora_")[0] for name in _trained(model)} == {f"model.{name}" for name in linear}
    assert all(".lora_A." in name or ".lora_B." in name for name in _trained(model))


def test_a_new_adapter_is_the_same_on_every_worker_and_does_not_change_the_random_state(base: Path) -> None:
    torch.manual_seed(1)
    first, after_first = _trained(_adapted(base)), torch.rand(3)
    torch.manual_seed(1)
    untouched = torch.rand(3)
    torch.manual_seed(2)
    second = _trained(_adapted(base))
    assert torch.equal(after_first, untouched)
    assert all(torch.equal(each, second[name]) for name, each in first.items())
    other = _trained(_adapted(base, seed=5))
    assert not all(torch.equal(each, other[name]) for name, each in first.items())


def test_golden_11_merged_weights_are_the_model_with_its_adapter(base: Path) -> None:
    model = _adapted(base)
    _disturb(model)
    tensors = read_tensors(base)
    merged = lora_adapter.merged(tensors, _trained(model), _LORA)
    assert merged.keys() == tensors.keys()
    plain = load_policy(base)
    assert (_logits(model) - _logits(plain)).abs().max() > 0.1
    plain.load_state_dict(merged, strict=False)
    assert (_logits(plain) - _logits(model)).norm() <= 1e-6 * _logits(model).norm()
    name = "model.layers.0.mlp.up_proj"
    up, down = (_trained(model)[f"{name}.lora_{which}.default.weight"] for which in "BA")
    torch.testing.assert_close(merged[f"{name}.weight"], tensors[f"{name}.weight"] + 3 * up @ down, rtol=0, atol=1e-6)


def test_a_merge_keeps_the_base_s_precision_and_rounds_once(base: Path) -> None:
    model = _adapted(base)
    _disturb(model)
    rounded = {name: each.bfloat16() for name, each in read_tensors(base).items()}
    merged = lora_adapter.merged(rounded, _trained(model), _LORA)
    exact = lora_adapter.merged({name: each.float() for name, each in rounded.items()}, _trained(model), _LORA)
    for name, each in merged.items():
        assert each.dtype == torch.bfloat16
        assert torch.equal(each, exact[name].bfloat16())


def test_golden_11_peft_loads_what_was_saved_and_has_the_same_logits(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = _adapted(base)
    _disturb(model)
    lora_adapter.save(_trained(model), tmp_path / ADAPTER, base=base, lora=_LORA)
    loaded = PeftModel.from_pretrained(load_policy(base), str(tmp_path / ADAPTER)).eval()
    torch.testing.assert_close(_logits(loaded), _logits(model), rtol=0, atol=1e-6)
    assert loaded.peft_config["default"].base_model_name_or_path == str(base)


def test_an_update_continues_its_parent_s_adapter_on_the_same_base(base: Path, tmp_path: Path) -> None:
    model = _adapted(base)
    _disturb(model)
    lora_adapter.save(_trained(model), tmp_path / ADAPTER, base=base, lora=_LORA)
    assert lora_adapter.base_of(tmp_path, _LORA) == base
    again = _trained(_adapted(tmp_path, base=base, seed=9))
    assert again.keys() == _trained(model).keys()
    assert all(torch.equal(each, again[name]) for name, each in _trained(model).items())


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=8, alpha=12), LoraConfig(rank=4, alpha=8), LoraConfig(rank=0)], ids=str
)
def test_with_another_adapter_shape_a_new_adapter_is_trained_over_the_parent(
    lora: LoraConfig, base: Path, tmp_path: Path
) -> None:
    lora_adapter.save(_trained(_adapted(base)), tmp_path / ADAPTER, base=base, lora=_LORA)
    assert lora_adapter.base_of(tmp_path, lora) == tmp_path
    assert lora_adapter.base_of(base, _LORA) == base


def test_without_the_adapter_s_base_a_new_adapter_is_trained_over_the_parent(base: Path, tmp_path: Path) -> None:
    lora_adapter.save(_trained(_adapted(base)), tmp_path / ADAPTER, base=tmp_path / "gone", lora=_LORA)
    assert lora_adapter.base_of(tmp_path, _LORA) == tmp_path


def test_an_adapter_that_does_not_fit_is_an_error(base: Path, tmp_path: Path) -> None:
    trained = _trained(_adapted(base))
    stranger = {name.replace("layers.1", "layers.7"): each for name, each in trained.items()}
    with pytest.raises(LearnerError, match=r"layers\.7.* which the base does not have"):
        lora_adapter.merged(read_tensors(base), stranger, _LORA)
    lora_adapter.save(stranger, tmp_path / ADAPTER, base=base, lora=_LORA)
    with pytest.raises(LearnerError, match="does not fit"):
        _adapted(tmp_path, base=base)


def test_an_adapter_that_lacks_a_layer_is_an_error(base: Path, tmp_path: Path) -> None:
    trained = _trained(_adapted(base))
    part = {name: each for name, each in trained.items() if "layers.1" not in name}
    lora_adapter.save(part, tmp_path / ADAPTER, base=base, lora=_LORA)
    with pytest.raises(LearnerError, match="does not fit"):
        _adapted(tmp_path, base=base)
