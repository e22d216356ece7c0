"""Open a Delta table, and create it when it is missing.

The version of a table's schema is a position in its log (`commits.SCHEMA`), written by the commit that creates the
table. A table of another version is refused: there are no migrations.
"""

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.commits import SCHEMA, carrying, number, opened
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.specs import BATCH, SCHEMA_VERSION, TableSpec


def table_exists(layout: Layout, name: str) -> bool:
    """Whether the run has a Delta table of this name. Creates nothing."""
    exists: bool = DeltaTable.is_deltatable(layout.table(name))
    return exists


def open_table(location: TableLocation, spec: TableSpec) -> DeltaTable:
    """Newest version of the table, which is created when it is missing.

    Raises ConfigError for a table with another schema, DeltaError when the store fails.
    """
    _create(location, spec)
    delta = opened(location)
    version = number(delta, SCHEMA)
    if version not in (0, SCHEMA_VERSION):
        raise ConfigError(
            f"{location.uri} has schema version {version}, this release reads {SCHEMA_VERSION}: run the release that "
            "wrote it, or move the table away"
        )
    if not version or [field.name for field in delta.schema().fields] != spec.schema.names:
        raise ConfigError(
            f"{location.uri} is not a `{spec.name}` table of this release: move it away, or name another directory"
        )
    return delta


def _create(location: TableLocation, spec: TableSpec) -> None:
    try:
        DeltaTable.create(
            location.uri,
            spec.schema,
            # When two processes create the table at once, both continue with the one that exists.
            mode="ignore",
            configuration={
                "delta.dataSkippingStatsColumns": f"{BATCH},{spec.time_column}",
                # How long a committer may be paused between reading the log and writing its entry.
                "delta.logRetentionDuration": "interval 1 days",
            },
            commit_properties=carrying({SCHEMA: SCHEMA_VERSION}),
        )
    except DeltaError:
        if not DeltaTable.is_deltatable(location.uri):
            raise
