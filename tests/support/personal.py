"""Personal policies and the interactions that they are drawn from, made without training."""

from sdpo_ray.config import CurateConfig, PersonalConfig
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store as personal_store
from sdpo_ray.personal.draw import EligibleInteractions, draw_personal
from sdpo_ray.personal.owners import Owner, owner_named
from sdpo_ray.personal.store import Attempt
from sdpo_ray.records import Candidate, Fingerprint, Interaction, Verdict
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import dialogue
from tests.support.erasing import VICTIM
from tests.support.user_data import finished_cycle, interactions_of, people, store

PEOPLE = ("ann", VICTIM, "bob")


def owner_of(layout: Layout, user: str | None) -> Owner:
    """The user as an owner, or the whole tenant where `user` is None."""
    return owner_named(layout, tenant="default", user=user, whole_tenant=user is None)


def add_personal_policy(
    layout: Layout, owner: Owner, *, version: int = 1, ended: bool = True, held_out: float = 1e-9
) -> None:
    """Write the files of a finished personal policy, or, unless `ended`, of one under way."""
    directory = layout.personal_version(owner.digest, version)
    snapshot = draw_personal(
        Table.interactions(layout),
        directory / personal_store.SNAPSHOT,
        tenant=owner.tenant,
        users=owner.users,
        champion_version=3,
        seed=1,
        now_s=1000.0,
        curate=CurateConfig(max_user_share=1.0),
        personal=PersonalConfig(held_out=held_out),
    )
    made = directory / personal_store.CANDIDATE
    (made / "adapter").mkdir(parents=True)
    (made / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    if not ended:
        return
    fingerprint = Fingerprint(token_ids=(), logprobs=())
    candidate = Candidate(
        policy_version=version, parent_version=3, path=str(made), snapshot_id=snapshot.snapshot_id,
        fingerprint=fingerprint,
    )  # fmt: skip
    policy = personal_store.seal_adapter(layout, owner.digest, candidate)
    attempt = Attempt(
        owner=owner.digest, version=version, base_version=3, snapshot=snapshot, verdict=Verdict.PROMOTE, reasons=(),
        name=policy.name, ended_at_s=1.0,
    )  # fmt: skip
    personal_store.conclude(layout, attempt, policy)


def run_with_personal_policies(layout: Layout) -> None:
    """Three users; ann, the victim and the whole tenant have personal policies."""
    said = people(layout, PEOPLE)
    interactions = [each for turns in said.values() for each in interactions_of(turns)]
    store(layout, [each for turns in said.values() for each in turns], interactions)
    finished_cycle(layout, 1, interactions_of(said["ann"]), parent=1)
    for user in ("ann", VICTIM, None):
        add_personal_policy(layout, owner_of(layout, user))


NOW_S = 10_000.0

CHAMPION = 3
"""The policy version of the responses in `conversations`."""


def chats(user: str, number: int, *, tenant: str = "default", at_s: float = 100.0) -> list[Interaction]:
    """Conversations of one interaction each, ten seconds apart."""
    return [
        each
        for index in range(number)
        for each in interactions_of(
            dialogue(f"{tenant}-{user}-{index}", user=user, tenant=tenant, at_s=at_s + 100 * index)
        )
    ]


def table_of(layout: Layout, *batches: list[Interaction]) -> Table:
    """The table `interactions` after one commit a batch."""
    table = Table.interactions(layout)
    for batch in batches:
        table.append(interactions_to_arrow(batch), {})
    return table


def eligible_of(table: Table, *, champion_version: int = CHAMPION) -> EligibleInteractions:
    return EligibleInteractions(
        table,
        champion_version=champion_version,
        now_s=NOW_S,
        curate=CurateConfig(max_age_versions=0),
        personal=PersonalConfig(),
    )
