"""Interactions of a snapshot, written and read back."""

from pathlib import Path

from sdpo_ray.records import Interaction
from sdpo_ray.tables.snapshot_files import read_interactions, rows_digest, write_interactions
from tests.support.conversations import turn


def test_a_snapshot_is_read_back_in_its_order_and_its_digest_depends_on_it(tmp_path: Path) -> None:
    made = [
        Interaction(
            interaction_id=name,
            turn=turn(name),
            follow_up="shorter",
            follow_up_turn_id="f",
            follow_up_at_s=1.0,
            conversation=name,
        )
        for name in ("b", "a", "c")
    ]
    digest = write_interactions(tmp_path, made)
    assert read_interactions(tmp_path) == made
    assert digest == rows_digest(read_interactions(tmp_path))
    assert digest != rows_digest(sorted(made, key=lambda each: each.interaction_id))
