"""How much of one user and of one tenant is admitted; pure.

Looked at in the order of the follow-ups' times, with what was admitted before, so that an interaction is judged by the
hour before it and not by the minute in which it was curated.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.admission import NotAdmitted

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionCounts:
    """What the limits look at in an interaction. Made by `curate.pipeline` from light columns."""

    interaction_id: str
    tenant: str
    user: str
    """Empty for anonymous users, whom only the tenant's limit holds."""
    content: str
    follow_up_at_s: float


def within_limits(
    new: Iterable[AdmissionCounts],
    *,
    before: Sequence[AdmissionCounts],
    copies: Mapping[str, int],
    config: CurateConfig,
) -> dict[str, NotAdmitted]:
    """The interactions of `new` that are over a limit, with the limit.

    `before` are those admitted in the hour before the oldest of `new` and since; `copies` counts the earlier
    interactions by content.
    """
    have = Counter(copies)
    users, tenants = _Hour(), _Hour()
    refused: dict[str, NotAdmitted] = {}
    known = {each.interaction_id for each in before}
    for each in sorted((*before, *new), key=lambda one: (one.follow_up_at_s, one.interaction_id)):
        user, now_s = (each.tenant, each.user), each.follow_up_at_s
        if each.interaction_id not in known:
            reason = None
            if have[each.content] >= config.max_copies:
                reason = NotAdmitted.DUPLICATE
            elif each.user and users.is_full(user, now_s, config.max_per_user_hour):
                reason = NotAdmitted.USER_FLOOD
            elif tenants.is_full(each.tenant, now_s, config.max_per_tenant_hour):
                reason = NotAdmitted.TENANT_FLOOD
            if reason is not None:
                refused[each.interaction_id] = reason
                continue
            have[each.content] += 1
        users.add(user, now_s)
        tenants.add(each.tenant, now_s)
    return refused


class _Hour:
    """Times of the last hour, by whose they are."""

    def __init__(self) -> None:
        self._times: dict[object, deque[float]] = defaultdict(deque)

    def is_full(self, who: object, now_s: float, limit: int) -> bool:
        """Whether `who` has `limit` times in the hour up to `now_s`; never for 0."""
        times = self._times[who]
        while times and times[0] <= now_s - HOUR_S:
            times.popleft()
        return 0 < limit <= len(times)

    def add(self, who: object, at_s: float) -> None:
        self._times[who].append(at_s)
