"""Import log files as one snapshot to train on, in one pass over the files.

Only the drawn interactions are in memory. The draw and the order of training depend on the seed and the ids alone: the
interactions whose digests with the seed are smallest are kept, in that order, whatever the order of the files.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.datasets.conversation_split import SplitLimits
from sdpo_ray.datasets.formats import Format
from sdpo_ray.datasets.import_report import ImportReport, NotImported, NotImportedCount
from sdpo_ray.datasets.log_reader import LogReader
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.io.files import sealed_directory, write_json
from sdpo_ray.records import Interaction, Snapshot
from sdpo_ray.tables.snapshot_files import write_interactions


class SnapshotImport:
    """One pass over log files that keeps at most `limit` interactions."""

    def __init__(self, *, limits: SplitLimits, limit: int, seed: int, held_out: float) -> None:
        self._limits = limits
        self._limit = limit
        self._seed = seed
        self._held_out = held_out
        self._reader = LogReader(limits)
        self._refused: Counter[NotImported] = Counter()
        self._seen: set[bytes] = set()
        self._drawn: list[tuple[int, Interaction]] = []
        """A heap with the largest digest first: the one to drop for a smaller digest."""

    def add(self, path: Path, form: Format | None, on_bytes: Callable[[int], None]) -> None:
        """Read one file, as `LogReader.read` does, and draw from its interactions."""
        for interaction in self._reader.read(path, form, on_bytes):
            self._keep(interaction)

    def report(self) -> ImportReport:
        reader = self._reader
        refused = reader.refused + self._refused
        counts = [
            NotImportedCount(reason=reason, of=of, n=n, share=n / total)
            for reason in NotImported
            for of, total in [("records", reader.num_records) if reason.of_records else ("answers", reader.num_answers)]
            if (n := refused[reason])
        ]
        train, held_out = self._split()
        return ImportReport(
            sources=tuple(reader.sources),
            num_records=reader.num_records,
            num_answers=reader.num_answers,
            num_train=len(train),
            num_held_out=len(held_out),
            refused=tuple(counts),
        )

    def write(self, final: Path) -> Snapshot:
        """Seal the snapshot, with `refusals.json` and the held-out interactions beside it.

        Raises ConfigError if `final` exists, DataError if there is nothing to train on.
        """
        if final.exists():
            raise ConfigError(f"{final} exists: name a new directory")
        train, held_out = self._split()
        if not train:
            raise DataError("nothing to learn from: every record was refused, or is held out")
        with sealed_directory(final) as aside:
            (aside / "held_out").mkdir()
            write_interactions(aside / "held_out", held_out)
            digest = write_interactions(aside, train)
            snapshot = Snapshot(
                snapshot_id=f"{final.name}-{digest[:12]}",
                table_version=0,  # There is no table.
                seed=self._seed,
                rule=self._rule(len(train), len(held_out)),
                interaction_ids=tuple(each.interaction_id for each in train),
                held_out_ids=tuple(each.interaction_id for each in held_out),
                path=str(final.resolve()),
                digest=digest,
                last_interaction_at_s=max(each.follow_up_at_s for each in train),
            )
            write_json(aside / "snapshot.json", snapshot)
            write_json(aside / "refusals.json", self.report())
        return snapshot

    def _keep(self, interaction: Interaction) -> None:
        name = bytes.fromhex(interaction.interaction_id)
        if name in self._seen:
            self._refused[NotImported.DUPLICATE] += 1
            return
        self._seen.add(name)
        digest = hashlib.sha256(f"{self._seed} {interaction.interaction_id}".encode()).digest()
        entry = (-int.from_bytes(digest[:16], "big"), interaction)
        if len(self._drawn) < self._limit:
            heapq.heappush(self._drawn, entry)
        else:
            self._refused[NotImported.NOT_DRAWN] += 1
            heapq.heappushpop(self._drawn, entry)

    def _split(self) -> tuple[Sequence[Interaction], Sequence[Interaction]]:
        """Training and held-out interactions, each in the order of the draw."""
        drawn = [each for _, each in sorted(self._drawn, key=lambda entry: -entry[0])]
        train = [each for each in drawn if not is_held_out(each.conversation, self._held_out)]
        return train, [each for each in drawn if is_held_out(each.conversation, self._held_out)]

    def _rule(self, num_train: int, num_held_out: int) -> str:
        formats = ", ".join(sorted({source.format.value for source in self._reader.sources}))
        return (
            f"{num_train + num_held_out} of {len(self._seen)} interactions of logs ({formats}), all alike; "
            f"{self._held_out:g} of conversations held out ({num_held_out} interactions); {self._limits}"
        )
