"""What one user or one tenant said, for a policy of their own: who has said enough, and the draw."""

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

_WHO = ("tenant", "user")


class EligibleInteractions:
    """Everybody's interactions that are young enough to learn from, as the table was when it was read."""

    def __init__(
        self, table: Table, *, champion_version: int, now_s: float, curate: CurateConfig, personal: PersonalConfig
    ) -> None:
        """`now_s` is Unix time."""
        table.refresh()
        rows = table.read([*COUNTED_COLUMNS, *_WHO, "batch"], upto=table.batch)
        config = _limits(curate, personal, one_user=False)
        stands = fresh(rows, champion_version=champion_version, now_s=now_s, config=config)
        self._rows = rows.select([*_WHO, "batch"]).filter(pa.array(stands))

    def users(self) -> Counter[tuple[str, str]]:
        """How many each named user has, by tenant and pseudonym."""
        named = self._rows.filter(pc.not_equal(self._rows["user"], ""))
        counted = named.group_by(list(_WHO)).aggregate([("batch", "count")])
        whose = zip(counted["tenant"].to_pylist(), counted["user"].to_pylist(), strict=True)
        return Counter(dict(zip(whose, counted["batch_count"].to_pylist(), strict=True)))

    def tenants(self) -> Counter[str]:
        """How many each tenant has, its anonymous users included."""
        return Counter(self._rows["tenant"].to_pylist())

    def count(self, tenant: str, users: Collection[str], *, after: int = 0) -> int:
        """How many of these users, or with none named of the whole tenant, came behind batch `after`."""
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
    """The snapshot of a personal policy at `final`, with what is held out beside it; drawn once, then read back.

    It holds the newest interactions of these users, each a pseudonym; with none named of the whole tenant, where no
    user has more than `max_user_share`. Raises DataError when nothing can be drawn.
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
    """The limits of the shared draw, but for those that share it out among tenants and users."""
    own = {"max_age_versions": personal.max_age_versions, "snapshot_size": personal.snapshot_size}
    alone = {"tenant_mix": {}, "replay_share": 0.0, "held_out": personal.held_out}
    return curate.model_copy(update=own | alone | ({"max_user_share": 1.0} if one_user else {}))
