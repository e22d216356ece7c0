from typing import Any

import pytest

from sdpo_ray.config import keys, load_run, parse_run, to_json
from sdpo_ray.config.data import KafkaConfig
from sdpo_ray.config.run import RENAMED
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Consent


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"distill": {"learnin_rate": 1e-4}}, "distill.learning_rate"),
        ({"distil": {"learning_rate": 1e-4}}, "distill"),
        ({"serve": {"prt": 1}}, "serve.port"),
        ({"sead": 1}, "seed"),
    ],
)
def test_an_unknown_key_fails_with_the_nearest_valid_name(values, nearest):
    with pytest.raises(ConfigError, match=f"did you mean {nearest}\\?"):
        parse_run(values)


def test_a_value_of_the_wrong_kind_is_named_with_what_was_given():
    with pytest.raises(ConfigError, match=r"distill\.workers\.zero_stage.*got 7"):
        parse_run({"distill": {"workers": {"zero_stage": 7}}})


def test_a_relative_root_is_refused_because_jobs_run_in_a_copy_of_the_tree():
    with pytest.raises(ConfigError, match="absolute"):
        parse_run({"root": "runs/mine"})


def test_overrides_are_toml_values_or_bare_words(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n[distill]\nepochs = 2\n")
    run = load_run(path, ["distill.learning_rate=1e-5", "capture.consent=none", "seed=3", "policy.base=a/b"])
    assert (run.seed, run.distill.epochs, run.distill.learning_rate) == (3, 2, 1e-5)
    assert run.capture.consent is Consent.NONE
    assert run.policy.base == "a/b"


@pytest.mark.parametrize("override", ["seed", "seed.x=1"])
def test_a_malformed_override_is_refused(tmp_path, override):
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n")
    with pytest.raises(ConfigError):
        load_run(path, [override])


def test_a_missing_run_file_names_the_recipes():
    with pytest.raises(ConfigError, match=r"laptop\.toml"):
        load_run("jobs/recipes/nothing.toml")


def test_a_run_reads_back_from_its_own_json():
    run = parse_run({"seed": 5, "serve": {"port": 1234}})
    assert parse_run(__import__("json").loads(to_json(run))) == run


def test_every_key_is_listed_once():
    listed = list(keys())
    assert len(listed) == len(set(listed))
    assert {"root", "seed", "distill.learning_rate", "promote.require_review"} <= set(listed)


def test_a_secret_of_kafka_is_named_in_the_run_file_and_read_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    def kafka(**options: str) -> KafkaConfig:
        return parse_run({"capture": {"kafka": {"options": options}}}).capture.kafka

    with pytest.raises(ConfigError, match=r"sasl\.password is a secret: write env:NAME"):
        kafka(**{"sasl.password": "hunter2"})
    named = kafka(**{"sasl.password": "env:KAFKA_PASSWORD", "security.protocol": "SASL_SSL"})
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match=r"sasl\.password is in KAFKA_PASSWORD, which is not set"):
        assert named.resolved_options
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    assert named.resolved_options == {"sasl.password": "hunter2", "security.protocol": "SASL_SSL"}
    assert "hunter2" not in named.model_dump_json()


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_answered_with_its_new_name(old: str, new: str):
    values: dict[str, Any] = {}
    section = values
    *path, key = old.split(".")
    for part in path:
        section = section.setdefault(part, {})
    section[key] = {}
    with pytest.raises(ConfigError, match=f"^{old}: was renamed to {new}$"):
        parse_run(values)
