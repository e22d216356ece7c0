"""The benchmark of a draw, at small sizes."""

import pytest

from benchmarks.sampling import Cost, growth, light, measure
from sdpo_ray.curate.sampling import LIGHT_COLUMNS


def test_every_size_is_drawn_from_with_all_rules_on():
    draws: list[Cost] = []
    costs = measure((2000, 5000), rounds=2, min_rows=10_000, on_draw=draws.append)
    assert [cost.num_rows for cost in costs] == [2000, 5000]
    assert all(cost.ns_a_row > 0 for cost in costs)
    assert [cost.num_rows for cost in draws] == [2000, 5000] * 3


def test_growth_is_the_cost_in_the_largest_table_over_that_in_the_smallest():
    assert growth([Cost(num_rows=9, ns_a_row=30.0), Cost(num_rows=1, ns_a_row=20.0)]) == pytest.approx(1.5)


def test_synthetic_rows_have_the_columns_and_the_order_of_the_table():
    rows = light(3000)
    assert rows.column_names == [*LIGHT_COLUMNS]
    assert len(set(rows["interaction_id"].to_pylist())) == 3000
    times = rows["follow_up_at_s"].to_pylist()
    assert times == sorted(times)
    assert 0 < 3000 - len(set(times)) < 100
