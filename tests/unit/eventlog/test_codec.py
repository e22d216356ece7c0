"""Events as bytes."""

import math

import pytest

from sdpo_ray.errors import CorruptLog
from sdpo_ray.eventlog.codec import decode, encode
from sdpo_ray.records import Turn
from tests.support.conversations import turn


def test_log_probs_that_are_not_finite_are_read_back():
    read = decode(encode(turn("t0", response_logprobs=(math.nan, -math.inf))))
    assert isinstance(read, Turn)
    assert math.isnan(read.response_logprobs[0])
    assert read.response_logprobs[1] == -math.inf


@pytest.mark.parametrize("payload", [b"", b"X", b"T", b"T\x01", b"F" + encode(turn("t0"))[1:]])
def test_bytes_that_are_not_an_event_are_refused(payload):
    with pytest.raises(CorruptLog, match="event"):
        decode(payload)
