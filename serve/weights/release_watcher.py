"""What one audience is to be served, as files say it; and a replica that makes it so.

A late or restarted replica needs nobody to tell it, and one that starts while the pointer names a release that it
cannot serve comes up on the one before.
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

logger = logging.getLogger("ray.serve")

Audience = Literal["users", "evaluator", "canary"]
FOLLOW_S = 0.2


class WeightSwapper(Protocol):
    """`serve.weights.swapper.Swapper` or `serve.lora.lora_swapper.LoRASwapper`."""

    serving: Release
    stall_s: float
    broken: bool

    async def to(self, release: Release) -> None: ...
    async def verify(self, release: Release) -> None: ...


class ReleasePointer:
    """The file that names what an audience is served. A canary serves the candidate on trial, else what users are."""

    def __init__(self, layout: Layout, audience: Audience) -> None:
        self._layout = layout
        self.path = layout.eval_pointer if audience == "evaluator" else layout.release_pointer
        self._canary = layout.canary_pointer if audience == "canary" else None

    def stamp(self) -> tuple[FileStamp | None, ...]:
        """Differs whenever the files do."""
        return tuple(file_stamp(path) for path in (self.path, self._canary) if path is not None)

    def read(self) -> Release | None:
        """What is to be served; None before the first release. Raises DataError for a file that is none of ours."""
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
        """What the pointer names, then what was served before it, as far as that is known; last the base."""
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
    """The first whose weights are there, by their headers."""
    for release in releases:
        try:
            checkpoint_io.headers(Path(release.path))
        except (OSError, DataError) as error:
            logger.error("v%d cannot be started on: %s", release.policy_version, error)
        else:
            return release
    return None


async def start(swapper: WeightSwapper, releases: Sequence[Release], *, loaded: Release | None) -> None:
    """Serve the first that checks out; `loaded` is the one in the engine. Raises SwapError when none does."""
    refused: SwapError | None = None
    for release in releases:
        try:
            await (swapper.verify(release) if release == loaded else swapper.to(release))
        except SwapError as error:
            logger.error("not started on v%d: %s", release.policy_version, error)
            refused = refused or error
        else:
            return
    raise SwapError(f"no release that is known of checks out: {refused}")


class ReleaseWatcher:
    """Keeps a replica at what its pointer names."""

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
        """Why the release that is pointed at is not served, after its version."""

    async def follow(self) -> None:
        """Serve what the pointer names, within `FOLLOW_S` of its change; a refused release is tried once."""
        seen: object = None
        while True:
            await asyncio.sleep(FOLLOW_S)
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
                assert release is not None, "nothing was to be served"
                self.refused = f"v{release.policy_version}: {error}"
                logger.error("release refused: %s", self.refused)
