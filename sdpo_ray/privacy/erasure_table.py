"""The tables that `jobs.erase` prints: what an erasure removed, and which policies had learned from the user."""

from rich.console import Console
from rich.table import Table

from sdpo_ray.privacy.erasure_report import ErasureReport


def print_erasure(erased: ErasureReport, console: Console) -> None:
    """Print counts, remarks and policies. No line names the user."""
    console.print(_removed(erased))
    derived = (erased.snapshots, erased.records, erased.mlflow_runs, erased.personal, erased.learned)
    if not any((*erased.rows.values(), *derived)):
        console.print("Nothing of the user was found. Is the name spelt as the client sent it, and the tenant right?")
    if erased.ambiguous_turns:
        console.print(f"{erased.ambiguous_turns} turns may be the user's, or another's with the same words: they stay.")
    if erased.events_in_log is None:
        console.print("Kafka keeps the events until the topic's retention ends; they never enter the tables again.")
    elif erased.events_in_log:
        console.print(f"{erased.events_in_log} of the user's events are in the event log.")
    if erased.learned:
        console.print(_learned(erased))
    without = erased.newest_release_without
    if any(each.served for each in erased.learned) and without is not None:
        console.print(
            f"Weights are not unlearned. v{without} has not learned from the user: `sdpo rollback --to {without}` "
            "serves it, and the training loop continues from there."
        )


def _removed(erased: ErasureReport) -> Table:
    table = Table("", "would be removed" if erased.dry_run else "removed", box=None)
    for name, n in erased.rows.items():
        table.add_row(f"rows of {name}", str(n))
    for directory, n in erased.snapshots.items():
        table.add_row(f"interactions of {directory}", str(n))
    for what, n in (
        ("records of candidates, rewritten", len(erased.records)),
        ("MLflow runs, drawn again or deleted", erased.mlflow_runs),
        ("personal policies, and their adapters", len(erased.personal)),
        ("leftovers and pages", len(erased.leftovers)),
    ):
        if n:
            table.add_row(what, str(n))
    return table


def _learned(erased: ErasureReport) -> Table:
    table = Table("policy", "learned from", "interactions", "is", box=None, title="learned from the user")
    table.title_justify = "left"
    for each in erased.learned:
        state = "served" if each.served else "a release that a rollback brings back" if each.released else "kept"
        source = each.snapshot_id if each.num_interactions else f"its parent v{each.parent_version}"
        table.add_row(f"v{each.policy_version}", source, str(each.num_interactions or ""), state)
    return table
