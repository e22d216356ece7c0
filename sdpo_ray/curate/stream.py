"""The incremental stage: what is new in the journal becomes interactions, and interactions become a snapshot.

    journal --ship--> turns --pair, admit--> interactions --draw--> snapshot

Each arrow is one commit that carries how far it read, so a job killed between any two goes on without repeating
or skipping. Pairing looks at light columns; Ray Data reads the paired turns, checks and admits them in blocks.
One curator works on a root at a time; a second one is harmless, but loses its commits to the first.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.dataset as ds

from sdpo_ray.config import Curate
from sdpo_ray.curate.admission import Refusal, admit
from sdpo_ray.curate.sampling import LightRow, count_trainable, draw
from sdpo_ray.curate.sessionize import Keyed, Pair, Pairing, pair
from sdpo_ray.curate.ship import EventLog, ship
from sdpo_ray.curate.store import FILE, Table, read_files
from sdpo_ray.errors import DataError
from sdpo_ray.records import Interaction, Snapshot
from sdpo_ray.storage import Layout, is_ready, read_json, sealed_directory, write_json
from sdpo_ray.tables import (
    INTERACTION,
    TURN,
    interactions_from_arrow,
    interactions_to_arrow,
    turns_from_arrow,
    write_interactions,
)

_TURNS = "turns"
_KEYED = list(Keyed.__dataclass_fields__)
_LIGHT = list(LightRow.__dataclass_fields__)
_REFUSAL = "refusal"
_OUTCOME = INTERACTION.append(pa.field(_REFUSAL, pa.string()))
_PAIRS_A_BLOCK = 512
_CPUS_A_BLOCK = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one `Curator.advance` did. Made by it; read by `jobs`."""

    turns_shipped: int
    turns_total: int
    interactions_admitted: int
    interactions_total: int
    refused: Counter[str]
    """Turns and pairs that came to nothing in this advance, by reason."""


class Curator:
    """The stage over one run's tables. Needs Ray only when there is something to pair."""

    def __init__(self, layout: Layout, config: Curate, log: EventLog) -> None:
        self._layout = layout
        self._config = config
        self._log = log
        self._turns = Table.turns(layout)
        self._interactions = Table.interactions(layout)

    def advance(self) -> Progress:
        """Ship, pair and admit everything that is new. Raises CorruptJournal."""
        shipped = ship(self._log, self._turns)
        admitted, refused = self._pair()
        return Progress(
            turns_shipped=shipped.num_turns,
            turns_total=self._turns.num_rows,
            interactions_admitted=admitted,
            interactions_total=self._interactions.num_rows,
            refused=shipped.refused + refused,
        )

    def count_new(self, *, since: int, champion_version: int) -> int:
        """Trainable interactions that came after version `since` of the table, `Snapshot.table_version`; 0 for all."""
        self._interactions.refresh()
        rows = _light_rows(self._interactions, since=since)
        return count_trainable(rows, champion_version=champion_version, config=self._config)

    def draw(self, cycle: int, *, seed: int, champion_version: int) -> Snapshot:
        """The snapshot of a cycle: drawn once, then read back. Raises DataError when nothing can be drawn."""
        final = self._layout.snapshot(cycle)
        if is_ready(final):
            return replace(read_json(final / "snapshot.json", Snapshot), path=str(final))
        self._interactions.refresh()
        rows = _light_rows(self._interactions)
        plan = draw(rows, champion_version=champion_version, seed=seed, config=self._config)
        if not plan.interaction_ids:
            raise DataError(f"nothing to draw: {plan.rule}")
        drawn = _interactions(self._interactions, plan.interaction_ids)
        with sealed_directory(final) as aside:
            digest = write_interactions(aside, drawn)
            snapshot = Snapshot(
                snapshot_id=f"{final.name}-{digest[:12]}",
                table_version=self._interactions.version,
                seed=seed,
                rule=plan.rule,
                interaction_ids=plan.interaction_ids,
                held_out_ids=plan.held_out_ids,
                path=str(final),
                digest=digest,
                last_interaction_at_s=max(interaction.follow_up_at_s for interaction in drawn),
            )
            write_json(aside / "snapshot.json", snapshot)
        return snapshot

    def _pair(self) -> tuple[int, Counter[str]]:
        """Decide all turns that came since the last commit; return how many interactions that gave, and refusals."""
        while True:
            self._interactions.refresh()
            version = self._turns.version
            since = self._interactions.position(_TURNS) or 0
            if since >= version:
                return 0, Counter()
            pairing, files = self._decide(since)
            rows, refused = self._admit(pairing.pairs, files)
            if self._interactions.append(rows, {_TURNS: version}):
                self._interactions.sync()
                return rows.num_rows, pairing.unpaired + refused

    def _decide(self, since: int) -> tuple[Pairing, dict[str, str]]:
        """The pairing of what is new, and the data file of each turn that it looked at."""
        new = self._turns.read([*_KEYED], since=since)
        keys = pa.array(set(new["parent_key"].to_pylist() + new["continuation_key"].to_pylist()) - {""}, pa.string())
        shares_key = ds.field("parent_key").isin(keys) | ds.field("continuation_key").isin(keys)
        rows = self._turns.read([*_KEYED, FILE], where=shares_key)
        turns = [Keyed(**row) for row in rows.select(_KEYED).to_pylist()]
        files = dict(zip(rows["turn_id"].to_pylist(), rows[FILE].to_pylist(), strict=True))
        return pair(turns, set(new["turn_id"].to_pylist())), files

    def _admit(self, pairs: Sequence[Pair], files: dict[str, str]) -> tuple[pa.Table, Counter[str]]:
        """The interactions that pairs give, oldest follow-up first, and the refusals."""
        if not pairs:
            return INTERACTION.empty_table(), Counter()
        import ray
        import ray.data

        _quieten_ray_data()
        pairs = sorted(pairs, key=lambda p: (files[p.answer], files[p.follow_up], p.answer))
        blocks = [
            _block(pairs[start : start + _PAIRS_A_BLOCK], files) for start in range(0, len(pairs), _PAIRS_A_BLOCK)
        ]
        outcomes = ray.data.from_arrow(blocks).map_batches(
            _admit_block,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_CPUS_A_BLOCK,
            fn_kwargs={"max_follow_up_chars": self._config.max_follow_up_chars},
        )
        rows = pa.concat_tables(ray.get(outcomes.to_arrow_refs()))
        refused = Counter(reason for reason in rows[_REFUSAL].to_pylist() if reason is not None)
        admitted = rows.filter(ds.field(_REFUSAL).is_null()).select(INTERACTION.names)
        return admitted.sort_by([("follow_up_at_s", "ascending"), ("interaction_id", "ascending")]), refused


def _block(pairs: Sequence[Pair], files: dict[str, str]) -> pa.Table:
    return pa.table(
        {
            "answer": [p.answer for p in pairs],
            "follow_up": [p.follow_up for p in pairs],
            "answer_file": [files[p.answer] for p in pairs],
            "follow_up_file": [files[p.follow_up] for p in pairs],
        }
    )


def _admit_block(pairs: pa.Table, *, max_follow_up_chars: int) -> pa.Table:
    """Rows of `_OUTCOME`, one a pair: an interaction, or a refusal and nothing else. Runs in a Ray task."""
    answers, follow_ups = pairs["answer"].to_pylist(), pairs["follow_up"].to_pylist()
    files = {*pairs["answer_file"].to_pylist(), *pairs["follow_up_file"].to_pylist()}
    ids = pa.array({*answers, *follow_ups}, pa.string())
    rows = read_files(sorted(files), TURN, TURN.names, ds.field("turn_id").isin(ids))
    turns = {turn.turn_id: turn for turn in turns_from_arrow(rows)}
    outcomes = [
        admit(turns[answer], turns[follow_up], max_follow_up_chars=max_follow_up_chars)
        for answer, follow_up in zip(answers, follow_ups, strict=True)
    ]
    admitted = [outcome for outcome in outcomes if isinstance(outcome, Interaction)]
    refused = [{_REFUSAL: outcome.value} for outcome in outcomes if isinstance(outcome, Refusal)]
    kept = interactions_to_arrow(admitted).append_column(_REFUSAL, pa.nulls(len(admitted), pa.string()))
    return pa.concat_tables([kept, pa.Table.from_pylist(refused, schema=_OUTCOME)])


def _light_rows(table: Table, *, since: int | None = None) -> list[LightRow]:
    return [LightRow(**row) for row in table.read(_LIGHT, since=since).to_pylist()]


def _interactions(table: Table, ids: Sequence[str]) -> list[Interaction]:
    """Interactions in the order of `ids`. Raises DataError unless each is there once."""
    rows = table.read(where=ds.field("interaction_id").isin(pa.array(ids, pa.string())))
    found = {interaction.interaction_id: interaction for interaction in interactions_from_arrow(rows)}
    if not len(ids) == rows.num_rows == len(found):
        raise DataError(f"{len(ids)} interactions were drawn, the table has {rows.num_rows} rows of {len(found)}")
    return [found[each] for each in ids]


def _quieten_ray_data() -> None:
    """A micro-batch every few seconds would fill the screen with plans and progress bars."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that the progress bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
