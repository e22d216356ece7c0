"""Make what is served equal what was decided: the release pointer, its confirmation, and the way back.

The pointer is one small file that every replica follows. MLflow's alias `champion` says the same to people.
Move the alias first, the pointer after it, in both directions: whoever is killed between the two leaves an
alias that `promote.alias_sync` brings the pointer to.
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

"""`v<policy version>: <why>`, while a replica refuses what the pointer names."""
_POLL_S = 0.1
_REQUEST_TIMEOUT_S = 5.0


def point_at(layout: Layout, proposed: Candidate | Release) -> Release:
    """Release a policy to the users: keep its record, then move the pointer. Returns what was released.

    Safe to repeat: what is served already stays as it is, with its time and its previous version.
    """
    served = served_release(layout)
    if served is not None and served.policy_version == proposed.policy_version:
        return served
    release = release_of(layout, proposed, previous_version=served.policy_version if served is not None else None)
    write_json(layout.release(release.policy_version), release)
    write_json(layout.release_pointer, release)
    return release


def release_of(layout: Layout, proposed: Candidate | Release, *, previous_version: int | None) -> Release:
    """A policy as it would be served from now on; with its adapter, where it has one over the run's base."""
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
    """What the pointer names; None before the first release."""
    return read_json(layout.release_pointer, Release) if layout.release_pointer.exists() else None


def released_versions(layout: Layout) -> frozenset[int]:
    """Every version that was ever released."""
    return frozenset(int(path.stem.removeprefix("v")) for path in layout.release(0).parent.glob("v*.json"))


def release_to_restore(layout: Layout, to: int | None = None) -> Release:
    """The release that `rollback` would point at: version `to`, or the one served before the present one.

    Raises ReleaseError, saying which versions there are, when `to` was never released or there is nothing to
    go back to.
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
    """Point at an earlier release again. The version left behind keeps its record. Raises as `release_to_restore`."""
    back = release_to_restore(layout, to)
    if back != served_release(layout):
        write_json(layout.release_pointer, back)
    return back


def confirm(url: str, policy_version: int, *, timeout_s: float, answers: int = 1) -> float:
    """Wait until `answers` consecutive replies of `url`/health come from `policy_version`; returns the seconds.

    Ask for several where several replicas share the address. Raises SwapError with the replica's words when it
    refused that version, ReleaseError when the time is up.
    """
    began = time.monotonic()
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
            if time.monotonic() - began > timeout_s:
                raise ReleaseError(
                    f"v{policy_version} was released, but {url} serves {last} after {timeout_s:.0f} s: "
                    "see the replicas' logs, and whether they read the same run.root"
                )
            time.sleep(_POLL_S)
    return time.monotonic() - began


def _adapter(layout: Layout, candidate: Path) -> str:
    """The candidate's adapter, where the weights beneath it are the run's base; else nothing."""
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
