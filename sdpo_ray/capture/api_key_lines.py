"""The lines that `sdpo keys list` prints."""

from collections.abc import Iterator
from datetime import UTC, datetime

from sdpo_ray.capture.api_keys import ApiKeys


def api_key_lines(known: ApiKeys) -> Iterator[str]:
    """Id, tenant, day and own limits of each key; one line that says so if requests need none."""
    if not known.required:
        yield "no keys: requests need none, and belong to the tenant default"
    for key in known.keys:
        own = {"requests/min": key.requests_per_minute, "tokens/min": key.tokens_per_minute, "at once": key.concurrent}
        limits = "".join(f"  {'any' if n == 0 else n} {what}" for what, n in own.items() if n is not None)
        yield f"{key.key_id}  {key.tenant}  {datetime.fromtimestamp(key.made_at_s, UTC):%Y-%m-%d}{limits}"
