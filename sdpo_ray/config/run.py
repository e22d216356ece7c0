"""A run file as a whole: reading it, overriding its keys, and errors that name the key to write instead."""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ValidationError, field_validator, model_validator

from sdpo_ray.config.data import CaptureConfig, CurateConfig
from sdpo_ray.config.distill import DistillConfig
from sdpo_ray.config.personal import PersonalConfig
from sdpo_ray.config.policy import PolicyConfig
from sdpo_ray.config.promotion import EvaluateConfig, PromoteConfig
from sdpo_ray.config.section import Section
from sdpo_ray.config.serving import ServeConfig
from sdpo_ray.config.simulation import SimulateConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout

RENAMED = {"promote.trial": "promote.canary"}
"""Keys and sections of earlier run files, with their current names; the error for an old one names the new one."""
REMOVED = {
    "distill.context.empty_system": "x is the prompt as it was served",
    "distill.context.end_token": "y has its end token exactly where it was emitted",
}
"""Keys of earlier run files that are gone, with what holds instead."""


class Run(Section):
    """One run file."""

    root: str = "~/.sdpo-ray/laptop"
    """Directory of everything that this run writes: absolute, or under `~`."""
    tables: str = ""
    """Location of the tables where it is not under `root`: a directory, or `s3://bucket/prefix` with AWS's own
    environment variables."""
    seed: int = 0
    """Seed of draws, updates and evaluations."""
    policy: PolicyConfig = PolicyConfig()
    serve: ServeConfig = ServeConfig()
    capture: CaptureConfig = CaptureConfig()
    curate: CurateConfig = CurateConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    personal: PersonalConfig = PersonalConfig()
    simulate: SimulateConfig = SimulateConfig()

    @model_validator(mode="after")
    def _bases(self) -> "Run":
        if self.serve.swap == "adapter" and not self.distill.lora.rank:
            raise ValueError("serve.swap 'adapter' serves adapters, but distill.lora.rank = 0 trains none")
        return self

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        if not Path(root).expanduser().is_absolute():
            raise ValueError("must be absolute or begin with ~: a Ray job runs in a copy of its working directory")
        return root

    @property
    def directory(self) -> Path:
        """`root`, with `~` expanded."""
        return Path(self.root).expanduser()

    @property
    def layout(self) -> Layout:
        """Paths of everything that this run writes."""
        return Layout(self.directory, self.tables)

    @property
    def base(self) -> Path:
        """The base's directory; a relative path is resolved in the working directory, then beside this package."""
        here = Path(self.policy.base).expanduser()
        return here.resolve() if here.exists() else Path(__file__).parents[2] / here


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file, then apply `section.key=value` overrides, with values in TOML or bare words.

    Raises ConfigError, which names the nearest valid key for an unknown one.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        recipes = (Path(__file__).parents[2] / "jobs" / "recipes").glob("*.toml")
        known = ", ".join(f"jobs/recipes/{recipe.name}" for recipe in sorted(recipes))
        raise ConfigError(f"there is no run file {path}; recipes: {known}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    return parse_run(values)


def parse_run(values: dict[str, Any]) -> Run:
    """Validate the content of a run file. Raises ConfigError."""
    try:
        return Run.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(detail) for detail in error.errors())) from None


def to_json(run: Run) -> str:
    """The resolved run as JSON, which is stored beside every candidate."""
    return msgspec.json.format(run.model_dump_json(), indent=2)


def keys(section: type[BaseModel] = Run, prefix: str = "") -> Iterable[str]:
    """Every key of a run file, dotted."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, key = name.strip().split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{name}: {part} is a value, not a section")
    values[key] = value


def _explain(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"{name}: {detail['msg']} (got {detail['input']!r})"
    if name in RENAMED:
        return f"{name}: was renamed to {RENAMED[name]}"
    if name in REMOVED:
        return f"{name}: was removed; {REMOVED[name]}"
    valid = list(keys()) if "." in name else list(Run.model_fields)
    return f"{name}: unknown key; did you mean {difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]}?"
