"""Users' data in a run, made by hand; and a search for every byte of a user."""

import gzip
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.curate.pairing_index import index
from sdpo_ray.io.files import sealed_directory, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.records import (
    Candidate,
    CycleOutcome,
    CycleStart,
    Interaction,
    Snapshot,
    TokenAttribution,
    Turn,
    Verdict,
    version_of_cycle,
)
from sdpo_ray.tables.arrow_schemas import feedback_to_arrow, interactions_to_arrow, turns_to_arrow
from tests.support import builders
from tests.support.conversations import changed, dialogue
from tests.support.cycle_records import entry


def pseudonym(layout: Layout, user: str) -> str:
    return Pseudonyms.load(layout.pseudonym_keys).of(user)


def interactions_of(turns: Sequence[Turn]) -> list[Interaction]:
    """One conversation's turns as interactions; the last turn has no follow-up and is left out."""
    return [
        Interaction(
            interaction_id=answer.turn_id,
            turn=answer,
            follow_up=follow_up.messages[-1].content,
            follow_up_turn_id=follow_up.turn_id,
            follow_up_at_s=follow_up.started_at_s,
            conversation=answer.keys.conversation,
        )
        for answer, follow_up in pairwise(turns)
    ]


def people(layout: Layout, users: Iterable[str], *, follow_ups: int = 2) -> dict[str, list[Turn]]:
    """One conversation of each user. Names are in the text and not in the turns' ids, which stay after an erasure."""
    found = {}
    for user in users:
        turns = dialogue(user, follow_ups=follow_ups, user=pseudonym(layout, user))
        found[user] = [changed(each, turn_id=f"{user[0]}-{number}") for number, each in enumerate(turns)]
    return found


def store(layout: Layout, turns: Sequence[Turn], interactions: Sequence[Interaction], feedback: Sequence = ()) -> None:
    """Write to the tables, as if ingested from the partition `p0` and curated."""
    tables = UserTables.of(layout)
    tables.turns.append(turns_to_arrow(turns), {"p0": len(turns)})
    if feedback:
        tables.feedback.append(feedback_to_arrow(feedback), {})
    tables.turns.refresh()
    index(tables.turns, tables.pending)
    tables.interactions.append(interactions_to_arrow(interactions), {"pending.decided": tables.turns.batch})


def signal(interaction: Interaction) -> TokenAttribution:
    words = tuple(interaction.turn.response.split())
    return TokenAttribution(
        interaction_id=interaction.interaction_id,
        prompt=interaction.turn.messages[-1].content,
        follow_up=interaction.follow_up,
        tokens=words,
        advantages=(0.5,) * len(words),
        logprobs=(-0.5,) * len(words),
    )


def finished_cycle(
    layout: Layout,
    cycle: int,
    drawn: Sequence[Interaction],
    *,
    parent: int,
    verdict: Verdict = Verdict.PROMOTE,
    served: bool = True,
) -> Candidate:
    """A cycle that drew these interactions; its candidate shows the attribution of the first four."""
    version = version_of_cycle(cycle)
    path = layout.snapshot(cycle)
    made = builders.snapshot(path, drawn, name=f"c{cycle:04d}")
    write_json(path / "snapshot.json", made)
    recorded = replace(
        entry(cycle).candidate,
        parent_version=parent,
        path=str(layout.candidate(version)),
        snapshot_id=made.snapshot_id,
        attributions=tuple(map(signal, drawn[:4])),
    )
    with sealed_directory(layout.candidate(version)) as aside:
        write_json(aside / "candidate.json", recorded)
    write_cycle(layout, cycle, made, parent=parent, verdict=verdict)
    write_json(layout.cycle(cycle) / "distill.json", recorded)
    if verdict is Verdict.PROMOTE:
        release = builders.release(layout.candidate(version), policy_version=version)
        write_json(layout.release(version), release)
        if served:
            write_json(layout.release_pointer, release)
    return recorded


def write_cycle(layout: Layout, cycle: int, drawn: Snapshot, *, parent: int, verdict: Verdict) -> None:
    directory = layout.cycle(cycle)
    version = version_of_cycle(cycle)
    write_json(
        directory / "start.json", CycleStart(cycle=cycle, policy_version=version, parent_version=parent, seed=cycle)
    )
    write_json(directory / "draw.json", drawn)
    outcome = CycleOutcome(cycle=cycle, policy_version=version, verdict=verdict, reasons=(), champion_version=version)
    write_json(directory / "release.json", outcome)


def hits(root: Path, words: Collection[str]) -> dict[str, list[str]]:
    """The files under `root` that hold one of the words, in their raw bytes or in their decoded content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and (
            held := [word for word in words if any(word.encode() in content for content in _contents(path))]
        ):
            found[str(path.relative_to(root))] = held
    return found


def _contents(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1":
        # Values are compressed on disk; statistics may hold them too.
        yield repr(pq.read_table(path).to_pydict()).encode()
        yield repr(pq.ParquetFile(path).metadata.to_dict()).encode()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:15] == b"SQLite format 3":
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            yield "\n".join(database.iterdump()).encode()
        database.close()
