"""Micro-batches: bounded, complete and the same on every worker; and the packed row of each."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT, Example
from sdpo_ray.distill.data.packing import batches, micro_batches, rows, shard
from tests.support.training_batches import CPU, made

lengths = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30), st.integers(1, 20)), max_size=30)


def _examples(lengths: list[tuple[int, int, int]]) -> list[Example]:
    return [made(f"e{index}", *sizes) for index, sizes in enumerate(lengths)]


def _tokens(item: Example) -> int:
    return max(len(item.prompt_ids), len(item.hindsight_ids)) + len(item.response_ids)


@given(lengths=lengths, max_tokens=st.integers(1, 200))
def test_every_example_is_in_one_micro_batch_within_the_budget(
    lengths: list[tuple[int, int, int]], max_tokens: int
) -> None:
    examples = _examples(lengths)
    packed = micro_batches(examples, max_tokens)
    names = [item.interaction_id for item in examples]
    assert sorted(item.interaction_id for part in packed for item in part) == sorted(names)
    for part in packed:
        assert part
        assert len(part) == 1 or sum(map(_tokens, part)) <= max_tokens


@given(lengths=lengths, max_tokens=st.integers(1, 200))
def test_no_two_micro_batches_would_fit_into_one(lengths: list[tuple[int, int, int]], max_tokens: int) -> None:
    filled = sorted(sum(map(_tokens, part)) for part in micro_batches(_examples(lengths), max_tokens))
    assert len(filled) < 2 or filled[0] + filled[1] > max_tokens


@given(lengths=lengths, order=st.randoms(use_true_random=False), max_tokens=st.integers(1, 200))
def test_packing_does_not_depend_on_the_order(
    lengths: list[tuple[int, int, int]], order: random.Random, max_tokens: int
) -> None:
    examples = _examples(lengths)
    before = micro_batches(examples, max_tokens)
    order.shuffle(examples)
    assert micro_batches(examples, max_tokens) == before


@given(lengths=lengths, num_workers=st.integers(1, 5), max_tokens=st.integers(1, 200))
def test_workers_split_a_batch_and_make_equally_many_passes(
    lengths: list[tuple[int, int, int]], num_workers: int, max_tokens: int
) -> None:
    batch = _examples(lengths)
    shards = [shard(batch, rank=rank, num_workers=num_workers, max_tokens=max_tokens) for rank in range(num_workers)]
    assert len({len(parts) for parts in shards}) == 1
    seen = [item.interaction_id for parts in shards for part in parts for item in part]
    assert sorted(seen) == sorted(item.interaction_id for item in batch)


@given(lengths=lengths, num_workers=st.integers(1, 5))
def test_loads_of_workers_differ_by_at_most_the_longest_example(
    lengths: list[tuple[int, int, int]], num_workers: int
) -> None:
    batch = _examples(lengths)
    loads = [
        sum(_tokens(item) for part in shard(batch, rank=rank, num_workers=num_workers, max_tokens=64) for item in part)
        for rank in range(num_workers)
    ]
    assert max(loads) - min(loads) <= max(map(_tokens, batch), default=0)


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
def test_sequences_are_concatenated_and_exactly_the_responses_are_scored(hindsight: bool) -> None:
    first, second = made("a", 2, 3, 2, temperature=0.7), made("b", 1, 0, 1)
    found = rows((first, second), HINDSIGHT if hindsight else PROMPT, device=CPU)
    context = first.hindsight_ids if hindsight else first.prompt_ids
    text = [*context, *first.response_ids]
    assert found.ids_1S.tolist() == [[*text, *second.prompt_ids, *second.response_ids]]
    assert found.positions_1S.tolist() == [[*range(len(text)), 0, 1]]
    assert found.bounds.tolist() == [0, len(text), len(text) + 2]
    assert found.bounds.dtype == torch.int32
    assert found.longest == len(text)
    assert found.row_N.tolist() == [0, 0, 1]
    assert found.scored_N.tolist() == [len(context) - 1, len(context), len(text)]
    assert found.target_N.tolist() == [*first.response_ids, *second.response_ids]
    torch.testing.assert_close(found.temperature_N, torch.tensor([0.7, 0.7, 1.0]))


@pytest.mark.parametrize("hindsight", [False, True])
def test_golden_17_the_first_k_tokens_are_left_out_of_each_sequence_and_short_ones_are_left_empty(
    hindsight: bool,
) -> None:
    k = 2
    items = [made(f"e{n}", 3, 4, n, first_scored=min(k, n)) for n in (1, 2, 5)]
    found = rows(tuple(items), HINDSIGHT if hindsight else PROMPT, device=CPU)
    start = found.bounds.tolist()[2]
    context = len(items[2].hindsight_ids if hindsight else items[2].prompt_ids)
    assert found.row_N.tolist() == [2, 2, 2]
    assert found.target_N.tolist() == list(items[2].response_ids[k:])
    assert found.scored_N.tolist() == [start + context + t - 1 for t in (2, 3, 4)]
    assert found.ids_1S.shape == found.positions_1S.shape == (1, found.bounds.tolist()[-1])


@given(lengths=lengths.filter(bool), k=st.integers(0, 5), hindsight=st.booleans())
def test_each_scored_position_is_the_one_before_its_target(
    lengths: list[tuple[int, int, int]], k: int, hindsight: bool
) -> None:
    items = [made(f"e{i}", *sizes, first_scored=min(k, sizes[2])) for i, sizes in enumerate(lengths)]
    found = rows(tuple(items), HINDSIGHT if hindsight else PROMPT, device=CPU)
    assert torch.equal(found.ids_1S[0, found.scored_N + 1], found.target_N)
    starts, ends = found.bounds[found.row_N.int()], found.bounds[found.row_N.int() + 1]
    assert ((starts <= found.scored_N) & (found.scored_N + 1 < ends)).all()
    assert len(found.target_N) == sum(len(item.response_ids) - item.first_scored for item in items)


def test_an_empty_micro_batch_is_one_token_that_is_not_scored() -> None:
    found = rows((), PROMPT, device=CPU)
    assert found.ids_1S.shape == (1, 1)
    assert found.bounds.tolist() == [0, 1]
    assert len(found.target_N) == len(found.row_N) == len(found.scored_N) == len(found.temperature_N) == 0
