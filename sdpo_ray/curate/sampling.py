"""Weighted sampling of the interactions of one update. Pure, seeded, on Arrow columns without a Python object per row.

Recent interactions weigh more: w_i = 2^(-newer_i / half_life), where newer_i is the number of newer trainable rows.
Sampling is without replacement, after Efraimidis and Spirakis (Information Processing Letters 97, 2006): keep the
largest u_i^(1/w_i), u_i uniform. That order is the one of the smallest log(e_i) - log(w_i) with e_i = -log(u_i)
exponential, which does not underflow for old rows. A quota (`curate.quotas`) takes the smallest keys among its own
rows, which is the same draw from fewer rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.quotas import Part, Pool, describe_parts, fill, user_cap
from sdpo_ray.records import FOREIGN, RefusalCount
from sdpo_ray.tables.arrow_schemas import split_of

LIGHT_COLUMNS = ("interaction_id", "follow_up_at_s", "policy_version", "split", "tenant", "user", "batch")
"""Columns that `draw` reads."""
COUNTED_COLUMNS = ("follow_up_at_s", "policy_version", "split")
"""Columns that `count_trainable` and `fresh` read."""

_DAY_S = 86_400
_SPLITS = 2**32
Index = npt.NDArray[np.int64]


class NotDrawn(StrEnum):
    """Why an interaction of the table is not in a snapshot; in the order in which the checks run."""

    STALE = "stale"
    """The answering policy is more than `max_age_versions` versions away from the champion."""
    TOO_OLD = "too_old"
    """The follow-up is older than `max_age_days`."""
    HELD_OUT = "held_out"
    """Its conversation is never trained on."""
    USER_CAP = "user_cap"
    """It was next, and its user had reached `max_user_share`."""
    LEFT_OVER = "left_over"
    """The snapshot was full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result of a draw. Made by `draw`; read by `curate.snapshot`."""

    interaction_ids: tuple[str, ...]
    """In the order of training."""
    held_out_ids: tuple[str, ...]
    """Held-out interactions that are neither stale nor too old, newest first, at most `snapshot_size`."""
    rule: str
    """The sampling rule as text, for people."""
    not_drawn: tuple[RefusalCount, ...]
    """Numbers of all other rows, by `NotDrawn`."""


def draw(
    rows: pa.Table,
    *,
    champion_version: int,
    seed: int,
    now_s: float,
    last_batch: int,
    config: CurateConfig,
    newest: bool = False,
) -> Plan:
    """Draw at most `config.snapshot_size` interactions, each at most once. The result does not depend on row order.

    `rows` has the columns `LIGHT_COLUMNS`; `now_s` is Unix time; `last_batch` is the newest batch that an earlier draw
    could take from, 0 when there was none. With `newest`, the newest rows are taken, and `seed` only decides their
    order.
    """
    status = _RowStatus(rows, champion_version, now_s, config)
    trainable = _newest_first(rows, np.flatnonzero(status.fresh & ~status.held_out))
    generator = np.random.default_rng(seed)
    # The smallest positive number replaces 0, whose logarithm is not finite.
    exponential = np.maximum(generator.standard_exponential(len(trainable)), np.finfo(np.float64).tiny)
    keys = np.log(exponential, out=exponential)
    keys += np.arange(len(trainable)) * (math.log(2) / config.recency_half_life)
    if newest:
        keys = np.arange(len(trainable), dtype=np.float64)
    pool = Pool(
        keys=keys,
        tenant=_tenants(rows, config)[trainable],
        is_old=_column(rows, "batch")[trainable] <= last_batch,
        users=lambda numbers: _users(rows, trainable[numbers]),
    )
    filled = fill(pool, config)
    held_out = _newest_first(rows, np.flatnonzero(status.fresh & status.held_out))
    return Plan(
        interaction_ids=_ids(rows, trainable[generator.permutation(np.sort(filled.taken))]),
        held_out_ids=_ids(rows, held_out[: config.snapshot_size]),
        rule=_rule(len(trainable), len(held_out), filled.parts, champion_version, config, newest=newest),
        not_drawn=status.not_drawn(
            user_cap=filled.num_capped, left_over=len(trainable) - len(filled.taken) - filled.num_capped
        ),
    )


def count_trainable(rows: pa.Table, *, champion_version: int, now_s: float, config: CurateConfig) -> int:
    """Number of rows that a draw without size, quotas or cap would take. `rows` has the columns `COUNTED_COLUMNS`."""
    status = _RowStatus(rows, champion_version, now_s, config)
    return int(np.count_nonzero(status.fresh & ~status.held_out))


def fresh(rows: pa.Table, *, champion_version: int, now_s: float, config: CurateConfig) -> npt.NDArray[np.bool_]:
    """Mask, shape (rows,), of rows that are neither stale nor too old, including held-out ones.

    `rows` has the columns `COUNTED_COLUMNS`; `now_s` is Unix time.
    """
    mask: npt.NDArray[np.bool_] = _RowStatus(rows, champion_version, now_s, config).fresh
    return mask


def is_held_out(conversation: str, share: float) -> bool:
    """Whether a conversation is never trained on. It depends on the conversation alone, so no draw can leak it."""
    return split_of(conversation) < share * _SPLITS


class _RowStatus:
    """Masks, shape (rows,), of the rows that are fresh and of those that are held out; counts of the others."""

    def __init__(self, rows: pa.Table, champion_version: int, now_s: float, config: CurateConfig) -> None:
        version = _column(rows, "policy_version")
        # Answers that no policy of this run made have no age: the learner decides about them. The distance is absolute
        # because a candidate that was served and rolled back has a higher version than the champion.
        stale = (version != FOREIGN) & (np.abs(champion_version - version) > config.max_age_versions)
        too_old = now_s - _column(rows, "follow_up_at_s") > config.max_age_days * _DAY_S
        self.fresh = ~(stale | too_old)
        self.held_out = _column(rows, "split") < config.held_out * _SPLITS
        self._counts = {
            NotDrawn.STALE: np.count_nonzero(stale),
            NotDrawn.TOO_OLD: np.count_nonzero(too_old & ~stale),
            NotDrawn.HELD_OUT: np.count_nonzero(self.held_out & self.fresh),
        }

    def not_drawn(self, *, user_cap: int, left_over: int) -> tuple[RefusalCount, ...]:
        counts = self._counts | {NotDrawn.USER_CAP: user_cap, NotDrawn.LEFT_OVER: left_over}
        return tuple(RefusalCount(reason=reason.value, n=int(n)) for reason, n in counts.items() if n)


def _newest_first(rows: pa.Table, chosen: Index) -> Index:
    """`chosen`, sorted from the newest follow-up to the oldest; equal times in the order of their ids."""
    times = _column(rows, "follow_up_at_s")[chosen]
    order = np.argsort(-times)
    times = times[order]
    new_time = np.r_[True, times[1:] != times[:-1]][: len(times)]
    tied = np.flatnonzero(~new_time | np.r_[~new_time[1:], False][: len(times)])
    chosen = chosen[order]
    if len(tied):
        run = np.cumsum(new_time)[tied]
        names = pa.table({"run": run, "id": _strings(rows, "interaction_id", chosen[tied])})
        chosen[tied] = chosen[tied][pc.sort_indices(names, [("run", "ascending"), ("id", "ascending")]).to_numpy()]
    return chosen


def _tenants(rows: pa.Table, config: CurateConfig) -> npt.NDArray[np.int32]:
    """For each row the index of its tenant in `tenant_mix`; its length for tenants that are not in it."""
    names = list(config.tenant_mix)
    if not names:
        return np.zeros(rows.num_rows, np.int32)
    found = pc.index_in(rows["tenant"], value_set=pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, len(names)), np.int32)


def _users(rows: pa.Table, chosen: Index) -> Index:
    """For each chosen row a number of its user within its tenant; -1 for an anonymous user."""
    users, tenants = (_strings(rows, name, chosen).dictionary_encode() for name in ("user", "tenant"))
    numbers = users.indices.to_numpy().astype(np.int64) * max(len(tenants.dictionary), 1) + tenants.indices.to_numpy()
    anonymous = pc.equal(users.dictionary, "").to_numpy(zero_copy_only=False)
    return np.where(anonymous[users.indices.to_numpy()], -1, numbers)


def _column(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.asarray(rows[name])


def _ids(rows: pa.Table, chosen: Index) -> tuple[str, ...]:
    return tuple(_strings(rows, "interaction_id", chosen).to_pylist())


def _strings(rows: pa.Table, name: str, chosen: Index) -> pa.Array:
    """Values of a column in the order of `chosen`. Filters by chunk first: Arrow's `take` copies the whole column."""
    mask = np.zeros(rows.num_rows, bool)
    mask[chosen] = True
    found = rows[name].filter(pa.array(mask)).combine_chunks()
    return found.take(pa.array(np.argsort(np.argsort(chosen))))


def _rule(
    num_trainable: int,
    num_held_out: int,
    parts: Sequence[Part],
    champion_version: int,
    config: CurateConfig,
    *,
    newest: bool,
) -> str:
    drawn = sum(part.taken for part in parts)
    weight = f"weight halved by every {config.recency_half_life} newer ones"
    words = [
        f"the newest {drawn} of {num_trainable} trainable interactions"
        if newest
        else f"{drawn} of {num_trainable} trainable interactions without replacement, {weight}",
        f"answers at most {config.max_age_versions} versions older than v{champion_version}, follow-ups at most "
        f"{config.max_age_days:g} days old",
        f"{config.held_out:g} of conversations held out ({num_held_out} interactions)",
        f"at most {user_cap(config)} of one named user",
        *describe_parts(parts, config),
    ]
    return "; ".join(words)
