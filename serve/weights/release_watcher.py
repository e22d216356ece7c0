"""Reads which release an audience is to be served from pointer files, and swaps a replica to it.

A late or restarted replica needs no message, and one that starts while the pointer names a release that it cannot serve
starts on the one before.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, Protocol

from sdpo_ray.errors import DataError, SwapError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.io.watched_file import FileStamp, file_stamp
from sdpo_ray.records import BASE_VERSION, Canary, Release
from serve.weights import checkpoint_io
from serve.weights.swapper import StallPhases

logger = logging.getLogger("ray.serve")

Audience = Literal["users", "evaluator", "canary"]
POLL_S = 0.2


class WeightSwapper(Protocol):
    """Puts releases into an engine: `serve.weights.swapper.Swapper` or `serve.lora.lora_swapper.LoRASwapper`."""

    serving: Release
    stall: StallPhases
    broken: bool

    async def to(self, release: Release) -> None: ...
    async def verify(self, release: Release) -> None: ...


class ReleasePointer:
    """The file that names an audience's release. A canary serves the candidate, and without one the users' release."""

    def __init__(self, layout: Layout, audience: Audience) -> None:
        self._layout = layout
        self.path = layout.eval_pointer if audience == "evaluator" else layout.release_pointer
        self._canary = layout.canary_pointer if audience == "canary" else None

    def stamp(self) -> tuple[FileStamp | None, ...]:
        """Return what differs whenever the files do."""
        return tuple(file_stamp(path) for path in (self.path, self._canary) if path is not None)

    def read(self) -> Release | None:
        """Return the release to serve; None before the first one. Raises DataError for a malformed file."""
        if self._canary is not None:
            try:
                return read_json(self._canary, Canary).candidate
            except FileNotFoundError:
                pass
        try:
            return read_json(self.path, Release)
        except FileNotFoundError:
            return None

    def to_start_on(self) -> list[Release]:
        """Return the release that the pointer names, its known predecessors, newest first, and last the base."""
        release = self.read()
        found: list[Release] = []
        while release is not None and release.policy_version not in {each.policy_version for each in found}:
            found.append(release)
            release = self._record(release.previous_version)
        base = self._record(BASE_VERSION) if found else None
        return [*found, base] if base is not None and base.policy_version != found[-1].policy_version else found

    def _record(self, version: int | None) -> Release | None:
        try:
            return read_json(self._layout.release(version), Release) if version is not None else None
        except (FileNotFoundError, DataError):
            return None


def first_whole(releases: Sequence[Release]) -> Release | None:
    """Return the first release whose weights are there, by their headers; None where there is none."""
    for release in releases:
        try:
            checkpoint_io.headers(Path(release.path))
        except (OSError, DataError) as error:
            logger.error("v%d cannot be started on: %s", release.policy_version, error)
        else:
            return release
    return None


async def start(swapper: WeightSwapper, releases: Sequence[Release], *, loaded: Release | None) -> None:
    """Serve the first release that verifies; `loaded` is in the engine already. Raises SwapError when none does."""
    refused: SwapError | None = None
    for release in releases:
        try:
            await (swapper.verify(release) if release == loaded else swapper.to(release))
        except SwapError as error:
            logger.error("not started on v%d: %s", release.policy_version, error)
            refused = refused or error
        else:
            return
    raise SwapError(f"no known release checks out: {refused}")


class ReleaseWatcher:
    """Keeps a replica at the release that its pointer names. Each swap runs inside `around()`."""

    def __init__(
        self,
        pointer: ReleasePointer,
        swapper: WeightSwapper,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._pointer = pointer
        self._swapper = swapper
        self._around = around
        self.refused: str | None = None
        """Version of the release that is pointed at and not served, and why; None while it is served."""

    async def follow(self) -> None:
        """Serve what the pointer names, within `POLL_S` of its change, forever; a refused release is tried once."""
        seen: object = None
        while True:
            await asyncio.sleep(POLL_S)
            stamp = self._pointer.stamp()
            if stamp == seen:
                continue
            seen = stamp
            try:
                release = self._pointer.read()
            except DataError as error:
                self.refused = str(error)
                continue
            try:
                if release is not None and release != self._swapper.serving:
                    with self._around():
                        await self._swapper.to(release)
                self.refused = None
            except SwapError as error:
                assert release is not None, "there was no release to serve"
                self.refused = f"v{release.policy_version}: {error}"
                logger.error("release refused: %s", self.refused)
