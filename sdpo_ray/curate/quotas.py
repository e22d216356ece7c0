"""Quotas of a snapshot: shares of tenants, a share of older interactions (replay), a cap per user. Pure functions.

Rows are taken in the order of their sampling keys, smallest first. A tenant's quota is divided into rows that an
earlier draw could have taken and new ones. If one half cannot fill its places, the other half gets them; places that a
tenant cannot fill go to the smallest keys of all tenants.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdpo_ray.config import CurateConfig

RowNumbers = npt.NDArray[np.int64]
"""Indices of rows of a pool."""
_MIN_SCAN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The rows that can be drawn; arrays of shape (rows,). Made by `curate.sampling`; read by `fill`."""

    keys: npt.NDArray[np.float64]
    """Sampling keys: the smallest are drawn."""
    tenant: npt.NDArray[np.int32]
    """Index in `tenant_mix`; its length for all other tenants."""
    is_old: npt.NDArray[np.bool_]
    """Whether an earlier draw could have taken the row."""
    users: Callable[[RowNumbers], RowNumbers]
    """Numbers of the users of these rows, equal for the same user within one call, negative for anonymous users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Part of a snapshot for one tenant, or for all without a share. Made by `fill`; read by `curate.sampling`."""

    tenant: str
    """Empty for all tenants that are not in `tenant_mix`."""
    quota: int
    old_quota: int
    """Part of `quota` that is kept for rows that an earlier draw could have taken."""
    taken: int
    old_taken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """The rows of a snapshot. Made by `fill`; read by `curate.sampling`."""

    taken: RowNumbers
    parts: tuple[Part, ...]
    num_capped: int
    """Rows that were skipped because their user had reached the cap."""


def fill(pool: Pool, config: CurateConfig) -> Filled:
    """Take at most `config.snapshot_size` rows of `pool`."""
    selection = _Selection(pool, config)
    parts = _quotas(config)
    tenants = [pool.tenant == number for number in range(len(parts))] if len(parts) > 1 else [np.True_]
    for of_tenant, (_, quota, old_quota) in zip(tenants, parts, strict=True):
        if config.replay_share:
            selection.take(of_tenant & pool.is_old, old_quota)
            selection.take(of_tenant & ~pool.is_old, quota - old_quota)
    for of_tenant, (_, quota, _) in zip(tenants, parts, strict=True):
        selection.take(of_tenant, quota - selection.count(of_tenant))
    selection.take(np.True_, config.snapshot_size - len(selection.taken))
    return Filled(
        taken=selection.taken,
        parts=tuple(
            Part(
                tenant=name,
                quota=quota,
                old_quota=old_quota,
                taken=selection.count(of_tenant),
                old_taken=selection.count(of_tenant & pool.is_old),
            )
            for of_tenant, (name, quota, old_quota) in zip(tenants, parts, strict=True)
        ),
        num_capped=selection.num_capped,
    )


def user_cap(config: CurateConfig) -> int:
    """Largest number of interactions of one named user in a snapshot; at least 1."""
    return max(1, math.floor(config.max_user_share * config.snapshot_size + 1e-9))


def describe_parts(parts: Sequence[Part], config: CurateConfig) -> list[str]:
    """Phrases of the sampling rule that state the quotas and what was taken; empty when the run has no quotas."""
    words = []
    if config.tenant_mix:
        each = ", ".join(f"{part.tenant or 'others'} {part.taken} for {part.quota}" for part in parts)
        short = any(part.taken < part.quota for part in parts)
        words.append(f"by tenant {each}{' (tenants without more rows left places to the others)' if short else ''}")
    if config.replay_share:
        old, quota = sum(part.old_taken for part in parts), sum(part.old_quota for part in parts)
        words.append(f"{old} for {quota} that an earlier draw could have taken")
    return words


class _Selection:
    """Rows taken so far."""

    def __init__(self, pool: Pool, config: CurateConfig) -> None:
        self._pool = pool
        self._cap = user_cap(config)
        self._is_capped = self._cap < config.snapshot_size
        self._open = np.ones(len(pool.keys), bool)
        """Rows neither taken nor skipped: a user who has reached the cap stays there."""
        self.taken: RowNumbers = np.empty(0, np.int64)
        self.num_capped = 0

    def count(self, allowed: npt.NDArray[np.bool_] | np.bool_) -> int:
        """Number of taken rows that are `allowed`."""
        return int(np.count_nonzero(np.broadcast_to(allowed, self._open.shape)[self.taken]))

    def take(self, allowed: npt.NDArray[np.bool_] | np.bool_, n: int) -> None:
        """Take the `n` open rows with the smallest keys among the `allowed` rows of users below the cap."""
        left = np.flatnonzero(self._open & allowed) if n > 0 else self.taken[:0]
        scan = 2 * n + _MIN_SCAN
        while n > 0 and len(left):
            front = left[_smallest(self._pool.keys[left], scan)]
            found = np.flatnonzero(self._within_cap(front))[:n]
            scanned = front[: found[-1] + 1] if len(found) == n else front
            self._open[scanned] = False
            self.num_capped += len(scanned) - len(found)
            self.taken = np.concatenate([self.taken, front[found]])
            n -= len(found)
            left = left[self._open[left]]
            scan *= 4

    def _within_cap(self, front: RowNumbers) -> npt.NDArray[np.bool_]:
        """For each of these rows, taken in this order, whether its user stays within the cap."""
        if not self._is_capped:
            return np.ones(len(front), bool)
        users = self._pool.users(np.concatenate([self.taken, front]))
        return ((_times_before(users) < self._cap) | (users < 0))[len(self.taken) :]


def _smallest(keys: npt.NDArray[np.float64], n: int) -> RowNumbers:
    """Indices of the `n` smallest keys and of all keys equal to the nth, ascending; equal keys in their order."""
    if n < len(keys):
        bound = np.partition(keys, n - 1)[n - 1]
        front = np.flatnonzero(keys <= bound)
    else:
        front = np.arange(len(keys))
    return front[np.argsort(keys[front], kind="stable")]


def _times_before(values: RowNumbers) -> RowNumbers:
    """For each position, how often its value occurs before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    numbers = np.arange(len(values))
    begins = np.r_[True, ordered[1:] != ordered[:-1]][: len(values)]
    found = np.empty(len(values), np.int64)
    found[order] = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    return found


def _quotas(config: CurateConfig) -> list[tuple[str, int, int]]:
    """(tenant, quota, old quota) for each tenant of `tenant_mix`, then for all others."""
    shares = list(config.tenant_mix.values())
    quotas = _apportioned(config.snapshot_size, [*shares, max(0.0, 1 - sum(shares))])
    replay = config.replay_share
    return [
        (name, quota, _apportioned(quota, [replay, 1 - replay])[0])
        for name, quota in zip([*config.tenant_mix, ""], quotas, strict=True)
    ]


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """`total` divided by the largest-remainder method: each part is within 1 of its share."""
    exact = [total * share for share in shares]
    whole = [math.floor(each + 1e-9) for each in exact]
    by_rest = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_rest[: total - sum(whole)]:
        whole[i] += 1
    return whole
