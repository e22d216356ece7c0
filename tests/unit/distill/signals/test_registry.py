from sdpo_ray.config.signal import ESTIMATORS
from sdpo_ray.distill.signals.registry import SIGNALS, signal_of
from tests.support.training_batches import learns


def test_every_estimator_of_a_run_file_has_an_implementation() -> None:
    assert SIGNALS.keys() == {*ESTIMATORS, "sft"}


def test_the_supervised_objective_has_neither_teacher_nor_follow_up() -> None:
    signal = signal_of(learns(objective="sft", estimator="full_kl"))
    assert signal.contexts == ()
    assert signal.teacher_contexts(scores_prompt=True) == ()


def test_built_in_signals_need_distributions_where_the_run_file_s_checks_say_so() -> None:
    for estimator in ESTIMATORS:
        for baseline in ("none", "token_kl") if estimator == "sampled_token" else ("none",):
            config = learns(estimator=estimator, baseline=baseline)
            assert signal_of(config).compares_distributions == config.signal.compares_distributions
