"""Times on the command line."""

from datetime import UTC, datetime

from sdpo_ray.errors import ConfigError


def unix_seconds(text: str | None) -> float | None:
    """Unix time of an ISO 8601 date or time, in UTC if it has no offset. Raises ConfigError for another form."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no ISO 8601 date or time, such as 2026-03-01 or 2026-03-01T12:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
