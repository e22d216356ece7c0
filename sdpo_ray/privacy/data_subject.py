"""Whose data is meant: the names that one user has in a run's rows, and the ids of what they said."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.snapshot_erasure import erased_by
from sdpo_ray.privacy.user_footprint import UserFootprint, UserTables, footprint_of
from sdpo_ray.tables.tombstones import Tombstone, Tombstones


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSubject:
    """A user, turns that somebody points at, or both."""

    users: tuple[tuple[str, str], ...]
    """Tenant and name, for every name that the user has had in rows."""
    turn_ids: tuple[str, ...]

    def traces(self, tables: UserTables, also: Collection[str] = ()) -> UserFootprint:
        """What they left in the tables, with the turns `also`."""
        tables.refresh()
        return footprint_of(tables, self.users, self.turn_ids, also)

    def learned_from(self, layout: Layout, traces: UserFootprint) -> frozenset[str]:
        """Ids that snapshots may have drawn: of what is in the tables, and of what was erased."""
        before = erased_by(layout.root, {each.erasure_id for each in self.erasures(layout)})
        return traces.said | traces.interaction_ids | before

    def erasures(self, layout: Layout) -> tuple[Tombstone, ...]:
        """The erasures that were asked for before."""
        return Tombstones(layout).of(self.users, self.turn_ids)


def find_data_subject(layout: Layout, *, tenant: str, user: str | None, turn_ids: Collection[str]) -> DataSubject:
    """Raises ConfigError where nobody is named, or there is no run."""
    if not (user or turn_ids) or "" in turn_ids:
        raise ConfigError("name somebody: --user, or --turn for what was said without a name")
    if not layout.root.is_dir():
        raise ConfigError(f"there is no run under {layout.root}: name another with --run or --set root=DIR")
    return DataSubject(users=_names(layout, tenant, user) if user else (), turn_ids=tuple(turn_ids))


def _names(layout: Layout, tenant: str, user: str) -> tuple[tuple[str, str], ...]:
    """Pseudonyms under every key; and for logs from elsewhere the digest that an import makes, as it is or keyed."""
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    imported = hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()[:32]
    names = (*pseudonyms.all_of(user), *pseudonyms.all_of(imported), imported)
    return tuple((tenant, name) for name in names)
