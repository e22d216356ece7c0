"""Releases: moves the release pointer, waits until replicas serve what it names, and rolls back.

The pointer is one small file that every replica follows; MLflow's alias `champion` names the same version for
operators. Move the alias first and the pointer second, in both directions: a process that is killed between the two
leaves an alias that `promote.alias_sync` brings the pointer to.
"""

import http.client
import time
import urllib.request
from collections.abc import Iterable
from email.message import Message
from pathlib import Path

from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.headers import POLICY_VERSION, SWAP_ERROR
from sdpo_ray.io.adapter_config import ADAPTER, read_adapter_config
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Candidate, Release

_POLL_S = 0.1
_REQUEST_TIMEOUT_S = 5.0


def point_at(layout: Layout, proposed: Candidate | Release) -> Release:
    """Release a policy to the users: write its record, then move the pointer. Returns the release.

    Safe to repeat: a version that is served already keeps its time and its previous version.
    """
    served = served_release(layout)
    if served is not None and served.policy_version == proposed.policy_version:
        return served
    release = release_of(layout, proposed, previous_version=served.policy_version if served is not None else None)
    write_json(layout.release(release.policy_version), release)
    write_json(layout.release_pointer, release)
    return release


def release_of(layout: Layout, proposed: Candidate | Release, *, previous_version: int | None) -> Release:
    """Release record of a policy, with its adapter where it has one over the run's base."""
    adapter = proposed.adapter if isinstance(proposed, Release) else _adapter(layout, Path(proposed.path))
    return Release(
        policy_version=proposed.policy_version,
        path=proposed.path,
        previous_version=previous_version,
        fingerprint=proposed.fingerprint,
        released_at_s=time.time(),
        adapter=adapter,
        digests=proposed.digests,
    )


def served_release(layout: Layout) -> Release | None:
    """Release that the pointer names; None before the first one."""
    return read_json(layout.release_pointer, Release) if layout.release_pointer.exists() else None


def require_served_release(layout: Layout) -> Release:
    """Release that users are served. Raises ReleaseError before the first one."""
    release = served_release(layout)
    if release is None:
        raise ReleaseError(f"nothing is served from {layout.root} yet: deploy serve/config.yaml first")
    return release


def released_versions(layout: Layout) -> frozenset[int]:
    """Every version that was ever released."""
    return frozenset(int(path.stem.removeprefix("v")) for path in layout.release(0).parent.glob("v*.json"))


def release_to_restore(layout: Layout, to: int | None = None) -> Release:
    """Release that `rollback` points at: version `to`, or the one that was served before the present one.

    Raises ReleaseError, naming the versions there are, where `to` was never released or no release came before.
    """
    served = served_release(layout)
    known = released_versions(layout)
    if served is None:
        raise ReleaseError("nothing was released yet, so there is nothing to roll back")
    wanted = served.previous_version if to is None else to
    if wanted is None:
        raise ReleaseError(f"v{served.policy_version} is the first release; released so far: {_list(known)}")
    if wanted not in known:
        raise ReleaseError(f"v{wanted} was never released; released so far: {_list(known)}")
    return read_json(layout.release(wanted), Release)


def rollback(layout: Layout, to: int | None = None) -> Release:
    """Point at an earlier release again; all records stay. Raises as `release_to_restore`."""
    restored = release_to_restore(layout, to)
    if restored != served_release(layout):
        write_json(layout.release_pointer, restored)
    return restored


def confirm(url: str, policy_version: int, *, timeout_s: float, answers: int = 1) -> float:
    """Wait until `answers` consecutive replies of `url`/health come from `policy_version`; returns the seconds.

    `answers` should be the number of replicas behind the address. Raises SwapError with the replica's reason where it
    refused that version, ReleaseError after `timeout_s`.
    """
    started = time.monotonic()
    in_a_row, last = 0, "no reply"
    while in_a_row < answers:
        try:
            headers = _health(url)
        except (OSError, http.client.HTTPException) as error:
            in_a_row, last = 0, f"no reply ({error})"
        else:
            last = f"v{headers.get(POLICY_VERSION, '?')}"
            in_a_row = in_a_row + 1 if last == f"v{policy_version}" else 0
            refused = headers.get(SWAP_ERROR, "")
            if refused.startswith(f"v{policy_version}:"):
                raise SwapError(f"{url} refused {refused}")
        if in_a_row < answers:
            if time.monotonic() - started > timeout_s:
                raise ReleaseError(
                    f"v{policy_version} was released, but {url} serves {last} after {timeout_s:.0f} s: "
                    "see the replicas' logs, and whether they read the same run.root"
                )
            time.sleep(_POLL_S)
    return time.monotonic() - started


def _adapter(layout: Layout, candidate: Path) -> str:
    """Directory of the candidate's adapter if it was trained over the run's base; else empty."""
    folder = candidate / ADAPTER
    try:
        beneath = read_adapter_config(folder).base_model_name_or_path
        base = read_json(layout.release(BASE_VERSION), Release).path
    except FileNotFoundError:
        return ""
    return str(folder) if Path(beneath).resolve() == Path(base).resolve() else ""


def _health(url: str) -> Message:
    with urllib.request.urlopen(f"{url}/health", timeout=_REQUEST_TIMEOUT_S) as reply:
        headers: Message = reply.headers
        return headers


def _list(versions: Iterable[int]) -> str:
    return ", ".join(f"v{version}" for version in sorted(versions)) or "none"
