"""The schema of one TOML run file. Unknown keys fail; every default is the product's.

Reading a run imports neither Ray nor torch, so `--help` and `--print-config` answer at once.
"""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, field_validator, model_validator

from sdpo_ray.config.data import CaptureConfig, CurateConfig
from sdpo_ray.config.distill import DistillConfig
from sdpo_ray.config.section import Section
from sdpo_ray.config.serving import CanaryConfig, PersonalConfig, ServeConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout

RENAMED = {"promote.trial": "promote.canary"}
"""Keys and sections of earlier run files, by their present names; the error for an old one says the new one."""


class PolicyConfig(Section):
    """The policy that is served and learns."""

    base: str = "sdpo_ray/simulate/tiny_policy/checkpoint"
    """Directory of the base policy, version 0: config, tokenizer and safetensors."""
    shape: str = ""
    """A `config.json` that stands in for the base's own in a dry run, on a machine that has not got the base."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the engine computes in."""
    max_model_len: int = Field(default=512, ge=16)
    """Longest prompt plus response, in tokens."""


class EvaluateConfig(Section):
    """The evaluation of a candidate."""

    questions: str = ""
    """Function that gives the prompts and says which answers are right, as `package.module:attribute`: takes the run,
    returns `evaluate.questions.Questions`."""
    judge: str = ""
    """Function that gives the judge of pairs of answers, as `package.module:attribute`: takes the run, returns an
    `evaluate.judge.Judge`."""
    num_prompts: int = Field(default=192, ge=8)
    """Held-out prompts, the same for every policy."""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    concurrency: int = Field(default=16, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class PromoteConfig(Section):
    """The gate, and MLflow's registry behind it."""

    min_win_rate: float = Field(default=0.5, ge=0, le=1)
    """Lower end of the interval of the win rate against the champion, ties counted half."""
    max_retention_drop: float = Field(default=0.03, ge=0, le=1)
    """Share of right answers a candidate may lose against the base."""
    min_retention: float = Field(default=0.95, ge=0, le=1)
    """Share of right answers under which nothing is promoted."""
    max_length_ratio: float = Field(default=2.0, gt=1)
    """Mean response length against the base's, above which an answer is running away."""
    max_repetition: float = Field(default=0.1, ge=0, le=1)
    """Share of answers that repeat themselves."""
    bounds: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Bounds of single scores, such as `{"collapse.empty" = 0.05}`, in place of those that their probes declare."""
    require_review: bool = False
    """Wait for a person to tag the model version `review=approved` in MLflow."""
    model_name: str = "policy"
    """Name of the registered model."""
    tracking_uri: str = ""
    """MLflow server; empty means SQLite and local files under `run.root`."""
    poll_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks at the registry."""
    confirm_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait until every replica answers with a released version."""
    canary: CanaryConfig = CanaryConfig()


class SimulateConfig(Section):
    """The people who talk to the policy where no real ones do."""

    persona: str = "concise"
    concurrency: int = Field(default=4, ge=1)
    """Users talking at once."""
    think_s: float = Field(default=0.5, gt=0)
    """Mean seconds between reading an answer and writing the next message."""
    stream_share: float = Field(default=0.5, ge=0, le=1)
    """Share of requests that are streamed."""
    people: int = Field(default=64, ge=1)
    """How many different users talk, each under a name of their own."""


class Run(Section):
    """One run file."""

    root: str = "~/.sdpo-ray/laptop"
    """Directory of everything this run writes: absolute, or under `~`."""
    tables: str = ""
    """Where the tables are, when not under `root`: a directory, or `s3://bucket/prefix` with AWS's own variables."""
    seed: int = 0
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
            raise ValueError("serve.swap 'adapter' serves adapters, and distill.lora.rank = 0 makes none")
        return self

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        if not Path(root).expanduser().is_absolute():
            raise ValueError("must be absolute or begin with ~: a Ray job runs in a copy of its working directory")
        return root

    @property
    def directory(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def layout(self) -> Layout:
        """Paths of everything this run writes."""
        return Layout(self.directory, self.tables)

    @property
    def base(self) -> Path:
        """The base policy's directory; a relative one is looked for here, then beside this package."""
        here = Path(self.policy.base).expanduser()
        return here.resolve() if here.exists() else Path(__file__).parents[2] / here


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file, then apply `section.key=value` overrides (values in TOML, or bare words).

    Raises ConfigError with the nearest valid name for an unknown key.
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
    """The resolved run, as stored beside every candidate."""
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
    valid = list(keys()) if "." in name else list(Run.model_fields)
    return f"{name}: unknown key; did you mean {difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]}?"
