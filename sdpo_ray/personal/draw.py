"""The interactions of one user or one tenant for a personal policy: how many there are, and the draw."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sdpo_ray.config import CurateConfig, PersonalConfig
from sdpo_ray.curate.sampling import COUNTED_COLUMNS, fresh
from sdpo_ray.curate.snapshot import draw_snapshot
from sdpo_ray.records import Snapshot
from sdpo_ray.tables.delta_table import Table

_USER_COLUMNS = ("tenant", "user")


class EligibleInteractions:
    """All interactions that are recent enough to learn from, as of the version of the table when it was read."""

    def __init__(
        self, table: Table, *, champion_version: int, now_s: float, curate: CurateConfig, personal: PersonalConfig
    ) -> None:
        """`now_s` is Unix time."""
        table.refresh()
        rows = table.read([*COUNTED_COLUMNS, *_USER_COLUMNS, "batch"], upto=table.batch)
        config = _limits(curate, personal, one_user=False)
        recent = fresh(rows, champion_version=champion_version, now_s=now_s, config=config)
        self._rows = rows.select([*_USER_COLUMNS, "batch"]).filter(pa.array(recent))

    def users(self) -> Counter[tuple[str, str]]:
        """Interactions of each named user, by tenant and pseudonym."""
        named = self._rows.filter(pc.not_equal(self._rows["user"], ""))
        counted = named.group_by(list(_USER_COLUMNS)).aggregate([("batch", "count")])
        users = zip(counted["tenant"].to_pylist(), counted["user"].to_pylist(), strict=True)
        return Counter(dict(zip(users, counted["batch_count"].to_pylist(), strict=True)))

    def tenants(self) -> Counter[str]:
        """Interactions of each tenant, those of anonymous users included."""
        return Counter(self._rows["tenant"].to_pylist())

    def count(self, tenant: str, users: Collection[str], *, after: int = 0) -> int:
        """Interactions of these users, or without `users` of the whole tenant, in batches after `after`."""
        theirs = pc.and_(pc.equal(self._rows["tenant"], tenant), pc.greater(self._rows["batch"], after))
        if users:
            theirs = pc.and_(theirs, pc.is_in(self._rows["user"], value_set=pa.array(users, pa.string())))
        return int(np.count_nonzero(theirs.to_numpy(zero_copy_only=False)))


def draw_personal(
    table: Table,
    final: Path,
    *,
    tenant: str,
    users: Collection[str],
    champion_version: int,
    seed: int,
    now_s: float,
    curate: CurateConfig,
    personal: PersonalConfig,
) -> Snapshot:
    """The snapshot of a personal policy in `final`, with held-out rows beside it; drawn once, then read back.

    Holds the newest interactions of `users` (pseudonyms). Without `users`: of the whole tenant, where no user has more
    than `max_user_share` of it. Raises DataError when nothing can be drawn.
    """
    where = ds.field("tenant") == tenant
    if users:
        where &= ds.field("user").isin(pa.array(users, pa.string()))
    return draw_snapshot(
        table,
        final,
        champion_version=champion_version,
        seed=seed,
        now_s=now_s,
        last_batch=0,
        config=_limits(curate, personal, one_user=bool(users)),
        where=where,
        personal=True,
    )


def _limits(curate: CurateConfig, personal: PersonalConfig, *, one_user: bool) -> CurateConfig:
    """The limits of the shared draw, without its shares of tenants and users."""
    own = {"max_age_versions": personal.max_age_versions, "snapshot_size": personal.snapshot_size}
    shares = {"tenant_mix": {}, "replay_share": 0.0, "held_out": personal.held_out}
    return curate.model_copy(update=own | shares | ({"max_user_share": 1.0} if one_user else {}))
