"""The user whose data is erased or traced: pseudonyms in the run's rows, and ids of turns."""

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
    """A user, turns of an anonymous user, or both. Made by `find_data_subject`; read by `privacy.erasure` and jobs."""

    users: tuple[tuple[str, str], ...]
    """Tenant and pseudonym, one for every key of the run and every form that an import gives the name."""
    turn_ids: tuple[str, ...]

    def footprint(self, tables: UserTables, also: Collection[str] = ()) -> UserFootprint:
        """Their rows in the tables as they are now, and those of the turns `also`."""
        tables.refresh()
        return footprint_of(tables, self.users, self.turn_ids, also)

    def interaction_ids(self, layout: Layout, footprint: UserFootprint) -> frozenset[str]:
        """Ids under which a snapshot may have drawn their data: of rows in the tables, and of rows erased before."""
        erased = erased_by(layout.root, {each.erasure_id for each in self.tombstones(layout)})
        return footprint.source_ids | footprint.interaction_ids | erased

    def tombstones(self, layout: Layout) -> tuple[Tombstone, ...]:
        """Their erasures so far, unfinished ones included."""
        return Tombstones(layout).of(self.users, self.turn_ids)


def find_data_subject(layout: Layout, *, tenant: str, user: str | None, turn_ids: Collection[str]) -> DataSubject:
    """The data subject with this user name, or of these turns. Raises ConfigError without either, or without a run."""
    if not (user or turn_ids) or "" in turn_ids:
        raise ConfigError("name a user: --user, or --turn for a turn without a user name")
    if not layout.root.is_dir():
        raise ConfigError(f"there is no run under {layout.root}: name another with --run or --set root=DIR")
    return DataSubject(users=_pseudonyms(layout, tenant, user) if user else (), turn_ids=tuple(turn_ids))


def _pseudonyms(layout: Layout, tenant: str, user: str) -> tuple[tuple[str, str], ...]:
    """Under every key; for imported logs also the digest that an import makes, bare and under every key."""
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    imported = hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()[:32]
    names = (*pseudonyms.all_of(user), *pseudonyms.all_of(imported), imported)
    return tuple((tenant, name) for name in names)
