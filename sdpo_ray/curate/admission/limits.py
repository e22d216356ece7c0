"""Limits on how much of one user and of one tenant is admitted. Pure functions.

Interactions are checked in the order of their follow-ups' times, together with those admitted before. So the result
depends on the hour before each follow-up, not on the minute in which it was curated.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.admission.reasons import NotAdmitted

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionCounts:
    """The columns of an interaction that the limits need. Made by `curate.pipeline`; read by `within_limits`."""

    interaction_id: str
    tenant: str
    user: str
    """Empty for anonymous users, to whom only the tenant's limit applies."""
    content: str
    """`arrow_schemas.content_of` of the interaction."""
    follow_up_at_s: float
    """Unix time."""


def within_limits(
    new: Iterable[AdmissionCounts],
    *,
    before: Sequence[AdmissionCounts],
    copies: Mapping[str, int],
    config: CurateConfig,
) -> dict[str, NotAdmitted]:
    """Ids of those interactions in `new` that exceed a limit, with the limit they exceed.

    `before` are the interactions admitted from one hour before the oldest of `new` on; `copies` counts all earlier
    interactions by `content`.
    """
    num_copies = Counter(copies)
    users, tenants = _LastHour(), _LastHour()
    refused: dict[str, NotAdmitted] = {}
    known = {each.interaction_id for each in before}
    for each in sorted((*before, *new), key=lambda one: (one.follow_up_at_s, one.interaction_id)):
        user, now_s = (each.tenant, each.user), each.follow_up_at_s
        if each.interaction_id not in known:
            reason = None
            if num_copies[each.content] >= config.max_copies:
                reason = NotAdmitted.DUPLICATE
            elif each.user and users.is_full(user, now_s, config.max_per_user_hour):
                reason = NotAdmitted.USER_FLOOD
            elif tenants.is_full(each.tenant, now_s, config.max_per_tenant_hour):
                reason = NotAdmitted.TENANT_FLOOD
            if reason is not None:
                refused[each.interaction_id] = reason
                continue
            num_copies[each.content] += 1
        users.add(user, now_s)
        tenants.add(each.tenant, now_s)
    return refused


class _LastHour:
    """Times of the admitted interactions within the last hour, by user or tenant."""

    def __init__(self) -> None:
        self._times: dict[object, deque[float]] = defaultdict(deque)

    def is_full(self, key: object, now_s: float, limit: int) -> bool:
        """Whether `key` has `limit` times in the hour up to `now_s`; a limit of 0 means no limit."""
        times = self._times[key]
        while times and times[0] <= now_s - HOUR_S:
            times.popleft()
        return 0 < limit <= len(times)

    def add(self, key: object, at_s: float) -> None:
        self._times[key].append(at_s)
