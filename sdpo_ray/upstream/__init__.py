"""Uses of private parts of upstream libraries, one module a library: what breaks when a pin moves is read here.

A module of this package, or of `serve.upstream` for what only serving may import, lists its uses in `PRIVATE_USES`.
`tests/contract/test_upstream.py` fails with that list when an installed version is not the one it was read in.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateUse:
    """One private symbol of a distribution that this project calls, replaces or depends on."""

    distribution: str
    """Name on the package index."""
    version: str
    """Version in which the symbol was read."""
    symbol: str
    """Dotted path of what is used."""
    reason: str
    """Why no public part does."""
    until: str
    """Condition under which the use can be removed."""
