"""Read log files as interactions, and count what is not imported by reason."""

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
"""The SDPO authors limit user messages of WildChat only."""


class LogReader:
    """Reads log files in a stream, and counts records, answers and refusals over all of them."""

    def __init__(self, limits: SplitLimits) -> None:
        self._limits = limits
        self._detect = detector()
        self.sources: list[Source] = []
        """Files read to the end."""
        self.refused: Counter[NotImported] = Counter()
        self.num_answers = 0
        """Answers that a user message follows, in the records that were not refused."""

    def read(self, path: Path, form: Format | None, on_bytes: Callable[[int], None]) -> Iterator[Interaction]:
        """Yield the interactions of one file; without `form`, the first record decides the format.

        `on_bytes` is called with the bytes read so far. Raises DataError if the file cannot be read, ConfigError if its
        format is not recognised.
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
                yield from self._split(conversation, form)
        if form is None:
            raise DataError(f"{path} has no record that can be read")
        source = Source(name=path.name, format=form, num_records=num_records, first_malformed=first_malformed)
        self.sources.append(source)

    @property
    def num_records(self) -> int:
        return sum(source.num_records for source in self.sources)

    def _split(self, conversation: LoggedConversation, form: Format) -> tuple[Interaction, ...]:
        limits = self._limits
        if form is Format.WILDCHAT and limits.max_question_chars is None:
            limits = replace(limits, max_question_chars=WILDCHAT_QUESTION_CHARS)
        split = split_conversation(conversation, tenant=form.value, limits=limits, detect=self._detect)
        self.refused += split.refused
        self.num_answers += len(split.interactions)
        self.num_answers += sum(n for reason, n in split.refused.items() if not reason.of_records)
        return split.interactions


def _detected(path: Path, row: LogRow) -> Format:
    try:
        return detect_format(row.record or {})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _conversation(row: LogRow, form: Format | None, number: int) -> LoggedConversation | None:
    """The conversation of a row; None for a malformed row."""
    if row.record is None or form is None:
        return None
    try:
        return read_record(row.record, form, number=number)
    except DataError:
        return None
