"""Read the fields of a log record: text, JSON, ids and times. Pure.

A missing or unreadable time is that of the previous message. If a record has no time at all, its number stands in, in
seconds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from sdpo_ray.errors import DataError

TIMES = ("timestamp", "created_at", "created")
"""Fields in which a record or a message may state its time."""

_MILLISECONDS_FROM = 1e11
"""Larger values are milliseconds; as seconds, this is the year 5138."""


def mappings(value: object) -> Sequence[Mapping[str, Any]]:
    """`value` as a list of JSON objects. Raises DataError for anything else."""
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise DataError("no list of messages")
    return value


def text_of(value: object) -> str:
    """Text of a message content: a string, or a list of text parts; empty for None. Raises DataError otherwise."""
    if isinstance(value, list):
        parts = [each.get("text") if each.get("type") == "text" else value for each in mappings(value)]
        return "\n".join(map(_plain, parts))
    return "" if value is None else _plain(value)


def _plain(value: object) -> str:
    if not isinstance(value, str):
        raise DataError("a content is no text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError("a content has half a surrogate pair") from error
    return value


def json_of(value: object) -> str:
    """JSON text of `value`, which may already be JSON text; empty for nothing. Raises DataError for invalid JSON."""
    try:
        if isinstance(value, str) and value:
            json.loads(value)
            return _plain(value)
        return _plain(json.dumps(value, ensure_ascii=False)) if value else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError("tools or arguments are no JSON") from error


def stated(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that holds a non-empty string or an integer, as a string; else empty."""
    found = (record.get(name) for name in names)
    texts = (str(value) for value in found if isinstance(value, str | int) and not isinstance(value, bool))
    return _plain(next(filter(None, texts), ""))


def times_of(record: Mapping[str, Any], raw: Sequence[Mapping[str, Any]], number: int) -> tuple[float, ...]:
    """Unix time of each message of the `number`-th record, non-decreasing."""
    stated = [_time(each) for each in raw]
    known = [time for time in (*stated, _time(record)) if time is not None]
    first = known[0] if known else float(number)
    return tuple(accumulate((first if time is None else time for time in stated), max))


def _time(fields: Mapping[str, Any]) -> float | None:
    """Unix seconds of a record or message, from seconds, milliseconds, ISO 8601 or a Parquet timestamp; else None."""
    value = next((fields[name] for name in TIMES if fields.get(name) is not None), None)
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            # Without a zone, logs mean UTC.
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    seconds = seconds / 1000 if seconds >= _MILLISECONDS_FROM else seconds
    return seconds if 0 < seconds < _MILLISECONDS_FROM else None
