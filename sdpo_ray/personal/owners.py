"""Whose personal policy is meant: one user, a whole tenant, or everybody for whom there is something to learn."""

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
    """Whose policy it is, and whose interactions it learns from."""

    digest: str
    tenant: str
    users: tuple[str, ...]
    """Pseudonyms; none for the whole tenant."""
    former: tuple[str, ...] = ()
    """Digests of the same user under other pseudonyms: their policies go when there is one under this."""


def owner_named(layout: Layout, *, tenant: str, user: str | None, whole_tenant: bool) -> Owner:
    """Somebody whom a person names. Raises ConfigError where nobody is named."""
    if bool(user) == whole_tenant:
        raise ConfigError("name somebody: --user NAME, or --whole-tenant for everybody of --tenant")
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    if not user:
        return Owner(digest=_digest(pseudonyms, tenant, ""), tenant=tenant, users=())
    names = pseudonyms.all_of(user)
    newest, *others = (_digest(pseudonyms, tenant, name) for name in names)
    return Owner(digest=newest, tenant=tenant, users=names, former=tuple(others))


def owners_due(
    layout: Layout, crowd: EligibleInteractions, personal: PersonalConfig, champion_version: int
) -> Iterator[Owner]:
    """Those who have said enough since the last attempt, or whose policy is stale; who said most comes first.

    A user of two pseudonyms is two here: nothing in the rows says that they are one. A tenant is among them once it has
    a policy.
    """
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    for (tenant, user), n in crowd.users().most_common():
        owner = Owner(digest=_digest(pseudonyms, tenant, user), tenant=tenant, users=(user,))
        if n >= personal.min_interactions and _is_due(layout, owner, crowd, personal, champion_version):
            yield owner
    for tenant, n in crowd.tenants().most_common():
        owner = Owner(digest=_digest(pseudonyms, tenant, ""), tenant=tenant, users=())
        if (
            n >= personal.min_interactions
            and served_policy(layout, owner.digest) is not None
            and _is_due(layout, owner, crowd, personal, champion_version)
        ):
            yield owner


def _is_due(
    layout: Layout, owner: Owner, crowd: EligibleInteractions, personal: PersonalConfig, champion_version: int
) -> bool:
    last = newest_attempt(layout, owner.digest)
    if last is None:
        return True
    if crowd.count(owner.tenant, owner.users, after=last.snapshot.last_batch) >= personal.min_interactions:
        return True
    policy = served_policy(layout, owner.digest)
    # What was refused over this champion would be refused again.
    return policy is not None and champion_version not in (policy.base_version, last.base_version)


def _digest(pseudonyms: Pseudonyms, tenant: str, pseudonym: str) -> str:
    return owner_digest(pseudonyms.pairing_key, tenant=tenant, pseudonym=pseudonym)
