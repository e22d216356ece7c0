"""Logs of elsewhere, file by file, as the interactions that are in them; what is not one is counted by name."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sdpo_ray.curate.language import detector
from sdpo_ray.datasets.conversation_split import SplitLimits, split_conversation
from sdpo_ray.datasets.file_reader import LogRow, read_rows
from sdpo_ray.datasets.formats import FIELDS, Format, LoggedConversation, detect_format, read_record
from sdpo_ray.datasets.import_report import NotImported, Source
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.records import Interaction

WILDCHAT_QUESTION_CHARS = 4096
"""The authors limit users' messages, too, but of WildChat alone."""


class LogReader:
    """Reads log files and keeps count. The logs are never in memory."""

    def __init__(self, limits: SplitLimits) -> None:
        self._limits = limits
        self._detect = detector()
        self.sources: list[Source] = []
        """The files that were read to their end."""
        self.refused: Counter[NotImported] = Counter()
        self.num_answers = 0
        """Answers that a user's message follows, in the records that were not refused."""

    def read(self, path: Path, form: Format | None, on_bytes: Callable[[int], None]) -> Iterator[Interaction]:
        """The interactions of one file, `form` or what its first record looks like; tell how many bytes are read.

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
                self.refused[NotImported.MALFORMED] += 1
                first_malformed = first_malformed or row.number
            else:
                yield from self._unroll(conversation, form)
        if form is None:
            raise DataError(f"{path} has no record that can be read")
        source = Source(name=path.name, format=form, num_records=num_records, first_malformed=first_malformed)
        self.sources.append(source)

    @property
    def num_records(self) -> int:
        return sum(source.num_records for source in self.sources)

    def _unroll(self, conversation: LoggedConversation, form: Format) -> tuple[Interaction, ...]:
        limits = self._limits
        if form is Format.WILDCHAT and limits.max_question_chars is None:
            limits = replace(limits, max_question_chars=WILDCHAT_QUESTION_CHARS)
        unrolled = split_conversation(conversation, tenant=form.value, limits=limits, detect=self._detect)
        self.refused += unrolled.refused
        self.num_answers += len(unrolled.interactions)
        self.num_answers += sum(n for reason, n in unrolled.refused.items() if not reason.of_records)
        return unrolled.interactions


def _detected(path: Path, row: LogRow) -> Format:
    try:
        return detect_format(row.record or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _conversation(row: LogRow, form: Format | None, number: int) -> LoggedConversation | None:
    """The conversation of a row; None where the row is malformed."""
    if row.record is None or form is None:
        return None
    try:
        return read_record(row.record, form, number=number)
    except DataError:
        return None
