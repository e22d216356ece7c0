"""Owners of personal policies: one user or a whole tenant, named by an operator or due for an update."""

from collections.abc import Iterator
from dataclasses import dataclass

from sdpo_ray.capture.pairing_keys import owner_digest
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import PersonalConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.draw import EligibleInteractions
from sdpo_ray.personal.store import newest_attempt, served_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A user or tenant with a personal policy, and the pseudonyms whose interactions it learns from."""

    digest: str
    tenant: str
    users: tuple[str, ...]
    """Pseudonyms; none for the whole tenant."""
    former: tuple[str, ...] = ()
    """Digests of the user under earlier pseudonyms: their policies are removed once `digest` has one."""


def owner_named(layout: Layout, *, tenant: str, user: str | None, whole_tenant: bool) -> Owner:
    """The owner of this name. Raises ConfigError unless exactly one of `user` and `whole_tenant` is given."""
    if bool(user) == whole_tenant:
        raise ConfigError("name an owner: --user NAME, or --whole-tenant for all users of --tenant")
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    if not user:
        return Owner(digest=_digest(pseudonyms, tenant, ""), tenant=tenant, users=())
    names = pseudonyms.all_of(user)
    newest, *others = (_digest(pseudonyms, tenant, name) for name in names)
    return Owner(digest=newest, tenant=tenant, users=names, former=tuple(others))


def owners_due(
    layout: Layout, eligible: EligibleInteractions, personal: PersonalConfig, champion_version: int
) -> Iterator[Owner]:
    """Owners with `min_interactions` since their last attempt, or with a stale policy; users first, largest first.

    A user with two pseudonyms counts as two: rows do not show that they belong together. A tenant is due only if it has
    a policy already.
    """
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    for (tenant, user), n in eligible.users().most_common():
        owner = Owner(digest=_digest(pseudonyms, tenant, user), tenant=tenant, users=(user,))
        if n >= personal.min_interactions and _is_due(layout, owner, eligible, personal, champion_version):
            yield owner
    for tenant, n in eligible.tenants().most_common():
        owner = Owner(digest=_digest(pseudonyms, tenant, ""), tenant=tenant, users=())
        if (
            n >= personal.min_interactions
            and served_policy(layout, owner.digest) is not None
            and _is_due(layout, owner, eligible, personal, champion_version)
        ):
            yield owner


def _is_due(
    layout: Layout, owner: Owner, eligible: EligibleInteractions, personal: PersonalConfig, champion_version: int
) -> bool:
    last = newest_attempt(layout, owner.digest)
    if last is None:
        return True
    if eligible.count(owner.tenant, owner.users, after=last.snapshot.last_batch) >= personal.min_interactions:
        return True
    policy = served_policy(layout, owner.digest)
    # An attempt that failed over this champion would fail again.
    return policy is not None and champion_version not in (policy.base_version, last.base_version)


def _digest(pseudonyms: Pseudonyms, tenant: str, pseudonym: str) -> str:
    return owner_digest(pseudonyms.pairing_key, tenant=tenant, pseudonym=pseudonym)
