"""A probe is one file: the suite runs it and the gate obeys it, with nothing else to edit."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sdpo_ray.config import PromoteConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.evaluate import probes
from sdpo_ray.evaluate.client import Answer, Answers
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.probe import Probe, ProbeInput, Suite
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.promote.gate import decide
from sdpo_ray.records import Decision, FinishReason, Report, ScoreSpec, Verdict

RULES = PromoteConfig()
SHIPPED = tuple(sorted(Path(str(probes.__file__)).parent.glob("[a-z]*.py")))
SHOUTING = """
from sdpo_ray.evaluate.probe import Probe, score
from sdpo_ray.evaluate.statistics import proportion
from sdpo_ray.records import ScoreSpec

def measure(given):
    shouted = sum(answer.text.isupper() for answer in given.candidate)
    return (score("shouting", proportion(shouted, len(given.candidate), given.confidence)),)

PROBE = Probe(
    name="shouting", scores=(ScoreSpec(name="shouting", direction="max", bound=0.5{more}),), run=measure
)
"""
MakePackage = Callable[..., ModuleType]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePackage]:
    """Makes a package of the shipped probes and of further files, given as name=source."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**files: str) -> ModuleType:
        folder = tmp_path / "some_probes"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for shipped in SHIPPED:
            (folder / shipped.name).write_text(shipped.read_text())
        for name, source in files.items():
            (folder / f"{name}.py").write_text(source)
        return importlib.import_module("some_probes")

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "some_probes"]:
        del sys.modules[name]


def answers(text: str, version: int) -> Answers:
    return tuple(
        Answer(prompt=f"q{n}", text=text, num_tokens=4, finish_reason=FinishReason.STOP, policy_version=version)
        for n in range(192)
    )


def evaluated(found: tuple[Probe, ...], text: str) -> Report:
    measured = ProbeInput(
        candidate=answers(text, 3),
        base=answers("Paris, of course.", 1),
        champion=answers("Paris, of course.", 2),
        judge=lambda prompt, a, b: "C" if a.lower() == b.lower() else "A" if len(a) < len(b) else "B",
        is_right=lambda prompt, text: "paris" in text.lower(),
        confidence=0.95,
    )
    return run_suite(found, measured, policy_version=3, base_version=1, champion_version=2)


def decided(found: tuple[Probe, ...], report: Report, rules: PromoteConfig = RULES) -> Decision:
    return decide(report, rules, scores_of(found))


def test_a_new_file_is_run_by_the_suite_and_obeyed_by_the_gate(package: MakePackage):
    found = find_probes(Suite.SHARED, RULES, package(shouting=SHOUTING.format(more="")))
    assert "shouting" in [probe.name for probe in found]
    assert decided(found, evaluated(found, "Paris.")).verdict is Verdict.PROMOTE
    loud = decided(found, evaluated(found, "PARIS."))
    assert loud.verdict is Verdict.REJECT
    assert loud.reasons == ("shouting 1.000 [0.980, 1.000] is over 0.500",)


def test_a_report_without_the_score_of_a_new_probe_is_rejected(package: MakePackage):
    found = find_probes(Suite.SHARED, RULES, package(shouting=SHOUTING.format(more="")))
    without = evaluated(tuple(probe for probe in found if probe.name != "shouting"), "Paris.")
    assert decided(found, without).verdict is Verdict.REJECT
    assert decided(found, without).reasons == ("shouting is missing",)


def test_a_score_that_is_not_required_may_be_missing_and_still_bounds(package: MakePackage):
    found = find_probes(Suite.SHARED, RULES, package(shouting=SHOUTING.format(more=", required=False")))
    without = evaluated(tuple(probe for probe in found if probe.name != "shouting"), "Paris.")
    assert decided(found, without).verdict is Verdict.PROMOTE
    assert decided(found, evaluated(found, "PARIS.")).verdict is Verdict.REJECT


def test_a_run_file_overrides_a_bound_by_the_name_of_its_score(package: MakePackage):
    lenient = PromoteConfig(bounds={"shouting": 1.0})
    found = find_probes(Suite.SHARED, lenient, package(shouting=SHOUTING.format(more="")))
    assert decided(found, evaluated(found, "PARIS."), lenient).verdict is Verdict.PROMOTE


@pytest.mark.parametrize("name", ["shouting", "win_rate.vs_base.coverage", "retentoin"])
def test_a_bound_for_a_score_that_no_probe_bounds_is_a_configuration_error(name: str):
    with pytest.raises(ConfigError, match=rf"promote\.bounds: no probe bounds {name}; bounded are collapse\.empty"):
        find_probes(Suite.SHARED, PromoteConfig(bounds={name: 0.1}))


def test_a_probe_that_returns_other_scores_than_it_declares_is_rejected(package: MakePackage):
    found = find_probes(Suite.SHARED, RULES, package(shouting=SHOUTING.format(more="")))
    renamed = tuple(
        replace(probe, scores=(replace(probe.scores[0], name="whispering"),)) if probe.name == "shouting" else probe
        for probe in found
    )
    assert decided(renamed, evaluated(renamed, "Paris.")).reasons == ("whispering is missing",)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", r"some_probes\.mine defines no PROBE"),
        ("PROBE = 'shouting'", r"some_probes\.mine defines no PROBE"),
        (SHOUTING.format(more="").replace('"shouting"', '"retention"'), "two probes are named retention"),
        (
            SHOUTING.format(more="").replace('name="shouting", d', 'name="retention", d'),
            "two scores are named retention",
        ),
        (
            SHOUTING.format(more="").replace("bound=0.5", 'setting="max_shouting"'),
            r"bounded by promote\.max_shouting, which is no key",
        ),
    ],
)
def test_a_file_that_is_no_probe_or_repeats_a_name_fails_at_start(package: MakePackage, source: str, why: str):
    with pytest.raises(ConfigError, match=why):
        find_probes(Suite.SHARED, RULES, package(mine=source))


@pytest.mark.parametrize("suite", Suite)
def test_every_shipped_probe_is_found_in_the_suites_that_it_names(suite: Suite):
    found = find_probes(suite, RULES)
    shared = ["collapse", "retention", "win_rate.vs_base", "win_rate.vs_champion"]
    assert [probe.name for probe in found] == (shared if suite is Suite.SHARED else ["collapse", "gain", "retention"])
    assert all(spec.required for spec in scores_of(found)), "a shipped score that is missing rejects"


@pytest.mark.parametrize(
    "given", [{"direction": "max"}, {"bound": 0.5}, {"direction": "min", "bound": 0.5, "setting": "x"}]
)
def test_a_bound_without_a_direction_or_the_reverse_is_refused(given: dict[str, object]):
    with pytest.raises(ValueError, match="needs either a bound or a setting"):
        ScoreSpec(name="shouting", **given)  # type: ignore[arg-type]


def test_the_score_that_promotes_is_required_even_where_no_probe_declares_it():
    found = tuple(probe for probe in find_probes(Suite.SHARED, RULES) if probe.name != "win_rate.vs_champion")
    assert decided(found, evaluated(found, "Paris.")).reasons == ("win_rate.vs_champion.ties_half is missing",)
