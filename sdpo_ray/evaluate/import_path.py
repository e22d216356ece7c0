"""Functions that a run file names by import path, as Ray Serve names applications: `package.module:attribute`."""

import pkgutil
from collections.abc import Callable
from typing import Any

from sdpo_ray.errors import ConfigError


def load(key: str, path: str) -> Callable[..., Any]:
    """The function at `path`, the value of the run file's `key`.

    Raises ConfigError where `path` is empty, is no `module:attribute`, cannot be imported or names no function.
    """
    if not path:
        raise ConfigError(f"{key} is empty: name a function as 'package.module:attribute'")
    if ":" not in path:
        raise ConfigError(f"{key}: {path!r} is not 'package.module:attribute'")
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: cannot import {path!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{key}: {path!r} is {type(found).__name__}, not a function")
    loaded: Callable[..., Any] = found
    return loaded
