"""Attention over packed sequences against that of transformers over single sequences. Golden test 20."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT
from sdpo_ray.distill.data.packing import PackedRows, rows
from sdpo_ray.distill.model.attention import PACKED, packed_attention, register
from sdpo_ray.distill.model.packed_lm import PackedLM
from tests.support.training_batches import CPU, made

_ITEMS = (made("a", 9, 3, 14), made("b", 2, 0, 1), made("c", 5, 6, 12))

_FP32 = {"rtol": 0, "atol": 1e-5}
"""Rotary embeddings and eager attention's softmax are computed in fp32 whatever the weights' precision."""


def _model(attention: str, *, window: int | None = None, model_type: str = "qwen3") -> Any:
    """Two layers with four query heads on two key heads; the second one has a sliding window, where there is one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    register()
    sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **(sliding if window else {}),
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()


def _hidden(model: Any, context: PackedRows) -> Tensor:
    found: Tensor = PackedLM(model)(context, lambda hidden_ND, _: hidden_ND)
    return found


def _alone(model: Any, context: PackedRows) -> Tensor:
    """Hidden states of each sequence by itself, at the scored positions."""
    found = torch.cat(
        [
            model.base_model(input_ids=context.ids_1S[:, start:end], use_cache=False).last_hidden_state[0]
            for start, end in pairwise(context.bounds.tolist())
        ]
    )
    return found[context.scored_N]


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["qwen3", "llama", "olmo2"])
@pytest.mark.parametrize("hindsight", [False, True])
def test_golden_20_packed_sequences_equal_single_sequences(model_type: str, theirs: str, hindsight: bool) -> None:
    context = rows(_ITEMS, HINDSIGHT if hindsight else PROMPT, device=CPU)
    expected = _alone(_model(theirs, model_type=model_type), context)
    found = _hidden(_model(PACKED, model_type=model_type), context)
    torch.testing.assert_close(found, expected, **_FP32)


@pytest.mark.parametrize("theirs", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 4, 26, 100])
def test_golden_20_a_sliding_window_equals_that_of_transformers(window: int, theirs: str) -> None:
    # Sequences of 23, 3 and 17 tokens: longer than the window, and shorter.
    context = rows(_ITEMS, PROMPT, device=CPU)
    sliding = _model(PACKED, window=window)
    assert sliding.config.layer_types == ["full_attention", "sliding_attention"]
    found = _hidden(sliding, context)
    torch.testing.assert_close(found, _alone(_model(theirs, window=window), context), **_FP32)
    differs = (found - _hidden(_model(PACKED), context)).abs().max() > 1e-3
    assert differs == (window < 23)


@pytest.mark.parametrize("window", [None, 4])
def test_golden_20_nothing_leaks_from_one_sequence_into_another(window: int | None) -> None:
    model = _model(PACKED, window=window)
    context = rows(_ITEMS, PROMPT, device=CPU)
    embedded: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.get_input_embeddings().register_forward_hook(keep)
    found = _hidden(model, context)
    for row, (start, end) in enumerate(pairwise(context.bounds.tolist())):
        (gradient_1SD,) = torch.autograd.grad(found[context.row_N == row].sum(), embedded[0], retain_graph=True)
        reached_S = gradient_1SD[0].abs().sum(-1) > 0
        # The last token predicts no scored token, and the first ones may be outside the window.
        assert reached_S[max(start, end - 4) : end - 1].all()
        assert not reached_S[:start].any()
        assert not reached_S[end - 1 :].any()


@pytest.mark.parametrize("window", [None, 3])
def test_attention_is_the_softmax_over_each_query_s_own_past(window: int | None) -> None:
    query_1HSD, key_1KSD, value_1KSD = (
        torch.randn(1, heads, 9, 4, generator=torch.Generator().manual_seed(heads + offset), dtype=torch.float64)
        for heads, offset in ((4, 0), (2, 10), (2, 20))
    )
    bounds = torch.tensor([0, 5, 9], dtype=torch.int32)
    found_1SHD, weights = packed_attention(
        None,
        query_1HSD,
        key_1KSD,
        value_1KSD,
        None,
        scaling=0.3,
        cu_seq_lens_q=bounds,
        max_length_q=5,
        sliding_window=window,
    )
    assert weights is None
    for head in range(4):
        for place in range(9):
            first = 0 if place < 5 else 5
            seen = slice(max(first, place + 1 - (window or 99)), place + 1)
            key_PD, value_PD = key_1KSD[0, head // 2, seen], value_1KSD[0, head // 2, seen]
            by_hand_D = (0.3 * key_PD @ query_1HSD[0, head, place]).softmax(0) @ value_PD
            torch.testing.assert_close(found_1SHD[0, place, head], by_hand_D, rtol=0, atol=1e-14)
