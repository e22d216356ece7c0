"""Micro-batches: bounded, complete, alike on every worker."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.distill.hindsight import Example
from sdpo_ray.distill.packing import batches, micro_batches, rows, shard

lengths = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30), st.integers(1, 20)), max_size=30)


@given(lengths=lengths, max_tokens=st.integers(1, 200))
def test_every_example_is_in_one_micro_batch_within_the_budget(
    lengths: list[tuple[int, int, int]], max_tokens: int
) -> None:
    examples = [made(f"e{index}", *sizes) for index, sizes in enumerate(lengths)]
    packed = micro_batches(examples, max_tokens)
    assert sorted(item.interaction_id for part in packed for item in part) == sorted(
        item.interaction_id for item in examples
    )
    for part in packed:
        widest = max(len(item.hindsight_ids) + len(item.response_ids) for item in part)
        assert len(part) == 1 or widest * len(part) <= max_tokens


@given(lengths=lengths, order=st.randoms(), max_tokens=st.integers(1, 200))
def test_packing_does_not_depend_on_the_order(
    lengths: list[tuple[int, int, int]], order: object, max_tokens: int
) -> None:
    examples = [made(f"e{index}", *sizes) for index, sizes in enumerate(lengths)]
    before = micro_batches(examples, max_tokens)
    order.shuffle(examples)  # type: ignore[attr-defined]
    assert micro_batches(examples, max_tokens) == before


@given(lengths=lengths, num_workers=st.integers(1, 5), max_tokens=st.integers(1, 200))
def test_workers_share_a_batch_and_make_equally_many_passes(
    lengths: list[tuple[int, int, int]], num_workers: int, max_tokens: int
) -> None:
    batch = [made(f"e{index}", *sizes) for index, sizes in enumerate(lengths)]
    shards = [shard(batch, rank=rank, num_workers=num_workers, max_tokens=max_tokens) for rank in range(num_workers)]
    assert len({len(parts) for parts in shards}) == 1
    seen = [item.interaction_id for parts in shards for part in parts for item in part]
    assert sorted(seen) == sorted(item.interaction_id for item in batch)


def test_batches_keep_the_order_first_and_shuffle_later_epochs_by_seed() -> None:
    examples = [made(f"e{index}", 1, 1, 1) for index in range(10)]

    def names(seed: int) -> list[list[str]]:
        return [[item.interaction_id for item in batch] for batch in batches(examples, 4, 2, seed)]

    assert names(0)[:3] == [["e0", "e1", "e2", "e3"], ["e4", "e5", "e6", "e7"], ["e8", "e9"]]
    assert [len(batch) for batch in names(0)] == [4, 4, 2, 4, 4, 2]
    second = [name for batch in names(0)[3:] for name in batch]
    assert sorted(second) == sorted(f"e{index}" for index in range(10))
    assert names(0) == names(0)
    assert names(0)[3:] != names(1)[3:]


@pytest.mark.parametrize("hindsight", [False, True])
def test_rows_score_exactly_the_response_positions(hindsight: bool) -> None:
    first = made("a", 2, 3, 2)
    second = made("b", 1, 0, 1)
    batch = rows((first, second), hindsight=hindsight)
    context = first.hindsight_ids if hindsight else first.prompt_ids
    width = len(context) + 2
    filling = [0] * (width - 2)
    assert batch.ids_BS.tolist() == [
        [*context, *first.response_ids],
        [*second.prompt_ids, *second.response_ids, *filling],
    ]
    assert batch.row_N.tolist() == [0, 0, 1]
    assert batch.position_N.tolist() == [len(context) - 1, len(context), 0]
    assert batch.target_N.tolist() == [*first.response_ids, *second.response_ids]
    torch.testing.assert_close(batch.temperature_N, torch.ones(3))


def test_an_empty_micro_batch_is_one_row_without_scored_tokens() -> None:
    batch = rows((), hindsight=False)
    assert batch.ids_BS.shape == (1, 1)
    assert len(batch.target_N) == len(batch.row_N) == len(batch.position_N) == len(batch.temperature_N) == 0


def made(name: str, num_prompt: int, num_block: int, num_response: int) -> Example:
    """An example of the given lengths; its ids are 1, 2, 3... and differ between prompt, block and response."""
    return Example(
        interaction_id=name,
        prompt_ids=tuple(range(1, 1 + num_prompt)),
        hindsight_ids=tuple(range(1, 1 + num_prompt + num_block)),
        response_ids=tuple(range(100, 100 + num_response)),
        sampler_logprobs=(-1.0,) * num_response,
        temperature=1.0,
        comparable=True,
    )
