"""Times on the command line."""

import pytest

from sdpo_ray.cli.times import unix_seconds
from sdpo_ray.errors import ConfigError


def test_dates_and_times_without_an_offset_are_utc():
    assert unix_seconds("1970-01-02") == 86400.0
    assert unix_seconds("1970-01-01T01:00") == 3600.0
    assert unix_seconds("1970-01-01T01:00+01:00") == 0.0
    assert unix_seconds(None) is None


def test_another_form_is_refused_with_an_example():
    with pytest.raises(ConfigError, match="such as 2026-03-01"):
        unix_seconds("yesterday")
