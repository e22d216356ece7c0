"""Logs of elsewhere become one snapshot to learn from, in one pass over their files.

The interactions that are kept are in memory, the logs never are. Which are drawn, and the order of training, follow
from the seed and the ids alone: keep those whose digests with the seed are smallest, in that order. So the
order of the files plays no part in either.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sdpo_ray.curate.importers import FIELDS, Conversation, Format, detect_format, read_record
from sdpo_ray.curate.language import detector
from sdpo_ray.curate.logfiles import Row, read_rows
from sdpo_ray.curate.refused import ImportReport, Refused, RefusedCount, Source
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.curate.unroll import Limits, unroll
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.records import Interaction, Snapshot
from sdpo_ray.storage import sealed_directory, write_json
from sdpo_ray.tables import write_interactions

WILDCHAT_QUESTION_CHARS = 4096
"""The authors limit users' messages, too, but of WildChat alone."""


class Import:
    """One pass over log files that keeps at most `limit` interactions."""

    def __init__(self, *, limits: Limits, limit: int, seed: int, held_out: float) -> None:
        self._limits = limits
        self._limit = limit
        self._seed = seed
        self._held_out = held_out
        self._detect = detector()
        self._sources: list[Source] = []
        self._refused: Counter[Refused] = Counter()
        self._num_answers = 0
        self._seen: set[bytes] = set()
        self._drawn: list[tuple[int, Interaction]] = []
        """A heap with the largest digest on top: what goes when a smaller one comes."""

    def add(self, path: Path, form: Format | None, on_bytes: Callable[[int], None]) -> None:
        """Read one file, `form` or what its first record looks like; tell how many of its bytes are read.

        Raises DataError where the file cannot be read, ConfigError where its format cannot be told.
        """
        num_records, first_malformed = 0, None
        for row in read_rows(path, FIELDS):
            num_records += 1
            on_bytes(row.bytes_done)
            if form is None and row.record is not None:
                form = _detected(path, row)
            conversation = _conversation(row, form, self.num_records + num_records)
            if conversation is None or form is None:
                self._refused[Refused.MALFORMED] += 1
                first_malformed = first_malformed or row.number
            else:
                self._unroll(conversation, form)
        if form is None:
            raise DataError(f"{path} has no record that can be read")
        source = Source(name=path.name, format=form, num_records=num_records, first_malformed=first_malformed)
        self._sources.append(source)

    @property
    def num_records(self) -> int:
        """Of the files that were read to their end."""
        return sum(source.num_records for source in self._sources)

    def report(self) -> ImportReport:
        counts = [
            RefusedCount(reason=reason, of=of, n=n, share=n / total)
            for reason in Refused
            for of, total in [("records", self.num_records) if reason.of_records else ("answers", self._num_answers)]
            if (n := self._refused[reason])
        ]
        train, held_out = self._split()
        return ImportReport(
            sources=tuple(self._sources),
            num_records=self.num_records,
            num_answers=self._num_answers,
            num_train=len(train),
            num_held_out=len(held_out),
            refused=tuple(counts),
        )

    def write(self, final: Path) -> Snapshot:
        """Seal the snapshot, with `refusals.json` and the held-out interactions beside it.

        Raises ConfigError where something has that name, DataError where there is nothing to learn from.
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
                # Of no table.
                table_version=0,
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

    def _unroll(self, conversation: Conversation, form: Format) -> None:
        limits = self._limits
        if form is Format.WILDCHAT and limits.max_question_chars is None:
            limits = replace(limits, max_question_chars=WILDCHAT_QUESTION_CHARS)
        unrolled = unroll(conversation, tenant=form.value, limits=limits, detect=self._detect)
        self._refused += unrolled.refused
        self._num_answers += len(unrolled.interactions)
        self._num_answers += sum(n for reason, n in unrolled.refused.items() if not reason.of_records)
        for interaction in unrolled.interactions:
            self._keep(interaction)

    def _keep(self, interaction: Interaction) -> None:
        name = bytes.fromhex(interaction.interaction_id)
        if name in self._seen:
            self._refused[Refused.DUPLICATE] += 1
            return
        self._seen.add(name)
        digest = hashlib.sha256(f"{self._seed} {interaction.interaction_id}".encode()).digest()
        entry = (-int.from_bytes(digest[:16], "big"), interaction)
        if len(self._drawn) < self._limit:
            heapq.heappush(self._drawn, entry)
        else:
            self._refused[Refused.NOT_DRAWN] += 1
            heapq.heappushpop(self._drawn, entry)

    def _split(self) -> tuple[Sequence[Interaction], Sequence[Interaction]]:
        """What is learned from and what is held out, each in the order in which it was drawn."""
        drawn = [each for _, each in sorted(self._drawn, key=lambda entry: -entry[0])]
        train = [each for each in drawn if not is_held_out(each.conversation, self._held_out)]
        return train, [each for each in drawn if is_held_out(each.conversation, self._held_out)]

    def _rule(self, num_train: int, num_held_out: int) -> str:
        formats = ", ".join(sorted({source.format.value for source in self._sources}))
        return (
            f"{num_train + num_held_out} of {len(self._seen)} interactions of logs ({formats}), all alike; "
            f"{self._held_out:g} of conversations held out ({num_held_out} interactions); {self._limits}"
        )


def _detected(path: Path, row: Row) -> Format:
    try:
        return detect_format(row.record or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _conversation(row: Row, form: Format | None, number: int) -> Conversation | None:
    """The conversation of a row; None where the row is malformed."""
    if row.record is None or form is None:
        return None
    try:
        return read_record(row.record, form, number=number)
    except DataError:
        return None
