"""Private parts of MLflow that the registry depends on. Importing this module does not import MLflow."""

from typing import Any

from sdpo_ray.upstream import PrivateUse

PRIVATE_USES = (
    PrivateUse(
        distribution="mlflow",
        version="3.17.2",
        symbol="mlflow.store.artifact.artifact_repository_registry.get_artifact_repository",
        reason="an erasure deletes single artifacts, also those of deleted runs; MlflowClient deletes none",
        until="MlflowClient deletes single artifacts of a run",
    ),
    PrivateUse(
        distribution="mlflow",
        version="3.17.2",
        symbol="mlflow.store.model_registry.sqlalchemy_store.SqlAlchemyStore.create_model_version",
        reason="policy version n is model version n: numbers begin at 1, count up in order of creation, and that of a "
        "deleted version is not used again; promote.registry checks the number after each creation",
        until="MLflow takes the number of a new model version from its caller, or documents how it counts",
    ),
)


def artifact_repository(artifact_uri: str, *, tracking_uri: str) -> Any:
    """MLflow's `ArtifactRepository` for one run: lists, downloads, logs and deletes artifacts."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
