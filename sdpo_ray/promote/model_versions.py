"""Model versions of one registered model of MLflow, by their number: policy version n is model version n.

MLflow numbers model versions from 1 in order of creation, and takes no number from its caller, so each number is
checked after creation. A version without the tag `policy_version` was created by something else.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_ray.errors import DataError

UNRECORDED = "unrecorded"
"""Status of a version that fills a number: the policy is older than its registered model."""
_OURS = "policy_version"
_UNRECORDED_TEXT = "Made before this registered model: only the run's directory has its records."


class ModelVersions:
    """The versions of the registered model `name`, which is created where there is none."""

    def __init__(self, client: Any, name: str) -> None:
        from mlflow.exceptions import MlflowException

        self._client = client
        self._name = name
        try:
            client.create_registered_model(name, description="The policy that keeps learning.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def register(
        self, policy_version: int, path: str, tags: Mapping[str, str], description: str, *, run_id: str | None = None
    ) -> None:
        """Create the version number `policy_version`, unless an earlier attempt did.

        A registered model that is younger than the run gets an `unrecorded` version for each number that it lacks.
        Raises DataError for one that is ahead: it holds versions of another origin.
        """
        if self.find(policy_version) is not None:
            return
        tags = {**tags, _OURS: str(policy_version)}
        while True:
            created = self._client.create_model_version(
                self._name, _uri(path), run_id=run_id, tags=tags, description=description
            )
            number = int(created.version)
            if number == policy_version:
                return
            if number > policy_version:
                self._client.delete_model_version(self._name, str(number))
                raise DataError(self._taken(policy_version, f"MLflow's next number is {number}"))
            self.set_tag(number, _OURS, str(number))
            self.set_tag(number, "status", UNRECORDED)
            self._client.update_model_version(self._name, str(number), _UNRECORDED_TEXT)

    def find(self, policy_version: int) -> Mapping[str, str] | None:
        """Tags of a version; None where there is none. Raises DataError for one of another origin."""
        from mlflow.exceptions import MlflowException

        try:
            tags: Mapping[str, str] = self._client.get_model_version(self._name, str(policy_version)).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if _OURS not in tags:
            raise DataError(self._taken(policy_version, "that version was created by something else"))
        return tags

    def require(self, policy_version: int) -> Mapping[str, str]:
        """Tags of a version. Raises DataError where there is none."""
        tags = self.find(policy_version)
        if tags is None:
            raise DataError(f"MLflow's model {self._name} has no version for v{policy_version}")
        return tags

    def set_tag(self, policy_version: int, key: str, value: str) -> None:
        """Set a tag of an existing version."""
        self._client.set_model_version_tag(self._name, str(policy_version), key, value)

    def aliased(self, alias: str) -> int | None:
        """The version that an alias names; None where there is no such alias, or it names one of another origin."""
        number = self._client.get_registered_model(self._name).aliases.get(alias)
        if number is None or _OURS not in self._client.get_model_version(self._name, number).tags:
            return None
        return int(number)

    def set_alias(self, alias: str, policy_version: int) -> None:
        """Point an alias at an existing version."""
        self._client.set_registered_model_alias(self._name, alias, str(policy_version))

    def all(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Number and tags of every version of ours, the oldest first."""
        found: list[tuple[int, Mapping[str, str]]] = []
        token = None
        while token is None or token:
            page = self._client.search_model_versions(f"name = '{self._name}'", page_token=token)
            found += [(int(each.version), each.tags) for each in page if _OURS in each.tags]
            token = page.token or ""
        return iter(sorted(found, key=lambda each: each[0]))

    def _taken(self, policy_version: int, why: str) -> str:
        return (
            f"v{policy_version} cannot be version {policy_version} of the registered model {self._name!r}: {why}. "
            "Set promote.model_name to the name of a registered model that nothing but this run writes to"
        )


def _uri(path: str) -> str:
    return path if "://" in path else Path(path).resolve().as_uri()
