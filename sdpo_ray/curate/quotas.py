"""Who gets which places of a snapshot: tenants their shares, older interactions theirs, no user too many; pure.

A tenant's part is divided first into what an earlier draw could have taken and what is new, each to the smallest keys.
What one side cannot fill the other may; what a tenant cannot fill goes to whoever has the smallest keys.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdpo_ray.config import CurateConfig

Places = npt.NDArray[np.int64]
"""Rows of a pool, by number."""
_FIRST_LOOK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What can be drawn, a row each. Made by `curate.sampling`."""

    keys: npt.NDArray[np.float64]
    """The smallest are drawn."""
    tenant: npt.NDArray[np.int32]
    """Place in `tenant_mix`, or behind its last."""
    is_old: npt.NDArray[np.bool_]
    """An earlier draw could have taken it."""
    people: Callable[[Places], Places]
    """Numbers of the users of some rows, good for one call: the same number for the same user, negative for nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One tenant's part of a snapshot, or that of all tenants who have no share of their own."""

    tenant: str
    """Empty for all who have none of their own."""
    quota: int
    old_quota: int
    """Of `quota`, the places kept for what an earlier draw could have taken."""
    taken: int
    old_taken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Made by `fill`; read by `curate.sampling`."""

    places: Places
    parts: tuple[Part, ...]
    num_capped: int
    """Rows passed over because their user had enough."""


def fill(pool: Pool, config: CurateConfig) -> Filled:
    """At most `config.snapshot_size` rows of `pool`."""
    taking = _Taking(pool, config)
    parts = _quotas(config)
    tenants = [pool.tenant == number for number in range(len(parts))] if len(parts) > 1 else [np.True_]
    for theirs, (_, quota, old_quota) in zip(tenants, parts, strict=True):
        if config.replay_share:
            taking.take(theirs & pool.is_old, old_quota)
            taking.take(theirs & ~pool.is_old, quota - old_quota)
    for theirs, (_, quota, _) in zip(tenants, parts, strict=True):
        taking.take(theirs, quota - taking.count(theirs))
    taking.take(np.True_, config.snapshot_size - len(taking.places))
    return Filled(
        places=taking.places,
        parts=tuple(
            Part(
                tenant=name,
                quota=quota,
                old_quota=old_quota,
                taken=taking.count(theirs),
                old_taken=taking.count(theirs & pool.is_old),
            )
            for theirs, (name, quota, old_quota) in zip(tenants, parts, strict=True)
        ),
        num_capped=taking.num_capped,
    )


def user_cap(config: CurateConfig) -> int:
    """Most interactions of one named user in a snapshot."""
    return max(1, math.floor(config.max_user_share * config.snapshot_size + 1e-9))


def parts_of(parts: Sequence[Part], config: CurateConfig) -> list[str]:
    """The parts of a rule that tell who has got what; none where nobody has a quota."""
    words = []
    if config.tenant_mix:
        each = ", ".join(f"{part.tenant or 'others'} {part.taken} for {part.quota}" for part in parts)
        short = any(part.taken < part.quota for part in parts)
        words.append(f"by tenant {each}{' (who has no more left places to the others)' if short else ''}")
    if config.replay_share:
        old, quota = sum(part.old_taken for part in parts), sum(part.old_quota for part in parts)
        words.append(f"{old} for {quota} that an earlier draw could have taken")
    return words


class _Taking:
    """Rows taken so far."""

    def __init__(self, pool: Pool, config: CurateConfig) -> None:
        self._pool = pool
        self._cap = user_cap(config)
        self._is_capped = self._cap < config.snapshot_size
        self._open = np.ones(len(pool.keys), bool)
        """Neither taken nor passed over: whose user has enough now has enough for good."""
        self.places: Places = np.empty(0, np.int64)
        self.num_capped = 0

    def count(self, allowed: npt.NDArray[np.bool_] | np.bool_) -> int:
        """How many of the rows taken are `allowed`."""
        return int(np.count_nonzero(np.broadcast_to(allowed, self._open.shape)[self.places]))

    def take(self, allowed: npt.NDArray[np.bool_] | np.bool_, n: int) -> None:
        """Take the `n` open rows with the smallest keys among those `allowed` whose users have not enough."""
        left = np.flatnonzero(self._open & allowed) if n > 0 else self.places[:0]
        look = 2 * n + _FIRST_LOOK
        while n > 0 and len(left):
            front = left[_smallest(self._pool.keys[left], look)]
            found = np.flatnonzero(self._has_room(front))[:n]
            walked = front[: found[-1] + 1] if len(found) == n else front
            self._open[walked] = False
            self.num_capped += len(walked) - len(found)
            self.places = np.concatenate([self.places, front[found]])
            n -= len(found)
            left = left[self._open[left]]
            look *= 4

    def _has_room(self, front: Places) -> npt.NDArray[np.bool_]:
        """Of rows in the order in which they are taken, which ones leave their user within the cap."""
        if not self._is_capped:
            return np.ones(len(front), bool)
        people = self._pool.people(np.concatenate([self.places, front]))
        return ((_times_before(people) < self._cap) | (people < 0))[len(self.places) :]


def _smallest(keys: npt.NDArray[np.float64], n: int) -> Places:
    """Where the `n` smallest keys are, ascending; equal ones in their order."""
    if n < len(keys):
        bound = np.partition(keys, n - 1)[n - 1]
        front = np.flatnonzero(keys <= bound)
    else:
        front = np.arange(len(keys))
    return front[np.argsort(keys[front], kind="stable")]


def _times_before(values: Places) -> Places:
    """How often each value came before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    numbers = np.arange(len(values))
    begins = np.r_[True, ordered[1:] != ordered[:-1]][: len(values)]
    found = np.empty(len(values), np.int64)
    found[order] = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    return found


def _quotas(config: CurateConfig) -> list[tuple[str, int, int]]:
    """(tenant, places, of them for old ones): those of `tenant_mix`, then all others."""
    shares = list(config.tenant_mix.values())
    quotas = _apportioned(config.snapshot_size, [*shares, max(0.0, 1 - sum(shares))])
    replay = config.replay_share
    return [
        (name, quota, _apportioned(quota, [replay, 1 - replay])[0])
        for name, quota in zip([*config.tenant_mix, ""], quotas, strict=True)
    ]


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """`total` by largest remainders: each within one of its share."""
    exact = [total * share for share in shares]
    whole = [math.floor(each + 1e-9) for each in exact]
    by_rest = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_rest[: total - sum(whole)]:
        whole[i] += 1
    return whole
