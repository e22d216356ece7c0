"""Encoding of events: one byte for the type, then MessagePack, because JSON turns a NaN log-prob into null.

Records grow by fields with defaults, so releases read each other's events.
"""

from typing import Any

import msgspec

from sdpo_ray.errors import CorruptLog, DataError
from sdpo_ray.records import Event, Feedback, Turn

_KINDS: dict[type[Any], bytes] = {Turn: b"T", Feedback: b"F"}
_DECODERS = {ord(kind): msgspec.msgpack.Decoder(record) for record, kind in _KINDS.items()}
_ENCODER = msgspec.msgpack.Encoder()


def encode(event: Event) -> bytes:
    """The event as bytes. Raises DataError for values that have none: a lone surrogate, an integer beyond 64 bits."""
    buffer = bytearray(_KINDS[type(event)])
    try:
        _ENCODER.encode_into(event, buffer, 1)
    except (UnicodeEncodeError, OverflowError) as error:
        raise DataError(f"{event_id(event)} cannot be written: {error}") from error
    return bytes(buffer)


def decode(payload: bytes) -> Event:
    """The event that `encode` made `payload` from. Raises CorruptLog for any other bytes."""
    decoder = _DECODERS.get(payload[0]) if payload else None
    if decoder is None:
        raise CorruptLog(f"{payload[:1]!r} is no kind of event")
    try:
        event: Event = decoder.decode(memoryview(payload)[1:])
    except msgspec.DecodeError as error:
        raise CorruptLog(f"not an event: {error}") from error
    return event


def event_id(event: Event) -> str:
    """The id of the turn or feedback."""
    return event.turn_id if isinstance(event, Turn) else event.feedback_id
