import logging
from dataclasses import replace
from typing import Literal

import pytest

from sdpo_ray.config import PromoteConfig
from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answer, Answers
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.judge import PairResult, compare
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.probes.collapse import collapse, repeats_itself
from sdpo_ray.evaluate.probes.retention import retention
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.evaluate.win_rate import win_rate
from sdpo_ray.records import FinishReason, Report, Score
from sdpo_ray.telemetry import Counters


def answers(*texts: str, version: int = 1, num_tokens: int = 4) -> Answers:
    return tuple(
        Answer(
            prompt=f"question {index}",
            text=text,
            num_tokens=num_tokens,
            finish_reason=FinishReason.STOP,
            policy_version=version,
        )
        for index, text in enumerate(texts)
    )


def shorter_wins(prompt: str, a: str, b: str) -> Literal["A", "B", "C"]:
    if len(a) == len(b):
        return "C"
    return "A" if len(a) < len(b) else "B"


def is_paris(prompt: str, text: str) -> bool:
    return "Paris" in text


def by_name(scores: tuple[Score, ...]) -> dict[str, float]:
    return {score.name: score.value for score in scores}


def test_golden_29_a_win_rate_reports_both_tie_rules_and_how_many_pairs_were_decided():
    scores = win_rate(
        "vs_base",
        answers("a", "a", "a", "aaa", "aa"),
        answers("bb", "bb", "bb", "b", "bb", version=0),
        judge=shorter_wins,
        confidence=0.95,
    )
    assert by_name(scores) == {
        "win_rate.vs_base.ties_dropped": 0.75,
        "win_rate.vs_base.ties_half": pytest.approx(0.7),
        "win_rate.vs_base.coverage": 0.8,
    }
    assert [score.n for score in scores] == [4, 5, 5]


def test_all_pairs_tied_is_no_signal_and_no_error():
    scores = win_rate("vs_champion", answers("a", "b"), answers("c", "d"), judge=shorter_wins, confidence=0.95)
    dropped, half, coverage = scores
    assert (dropped.n, dropped.low, dropped.high) == (0, 0.0, 1.0)
    assert half.value == 0.5
    assert coverage.value == 0


def test_a_judge_that_prefers_the_first_answer_decides_nothing():
    assert compare(lambda prompt, a, b: "A", "p", "ours", "theirs") is PairResult.TIE


def test_a_judge_sees_every_pair_in_both_orders():
    seen = []

    def judge(prompt: str, a: str, b: str) -> Literal["A", "B", "C"]:
        seen.append((prompt, a, b))
        return "A" if a == "ours" else "B"

    assert compare(judge, "p", "ours", "theirs") is PairResult.WIN
    assert compare(judge, "p", "theirs", "ours") is PairResult.LOSS
    assert seen[:2] == [("p", "ours", "theirs"), ("p", "theirs", "ours")]


def test_a_judge_that_says_something_else_is_refused():
    with pytest.raises(DataError, match="'both'"):
        compare(lambda prompt, a, b: "both", "p", "ours", "theirs")  # type: ignore[arg-type,return-value]


def test_retention_counts_right_answers_and_what_was_lost_of_the_base():
    ours = answers("Paris", "Rome", "Rome", "Paris", "Rome")
    base = answers("Paris", "Paris", "Paris", "Rome", "Rome", version=0)
    scores = retention(ours, base, is_right=is_paris, confidence=0.95)
    assert by_name(scores) == {"retention": 0.4, "retention.drop_vs_base": pytest.approx(0.2)}


def test_a_policy_that_learned_more_than_it_lost_has_a_negative_drop():
    scores = retention(answers("Paris", "Paris"), answers("Paris", "Rome"), is_right=is_paris, confidence=0.95)
    assert by_name(scores)["retention.drop_vs_base"] == -0.5


def test_collapse_measures_length_loops_cuts_and_silence():
    ours = list(answers("fine", "no no no no no", " \n", "fine", num_tokens=12))
    ours[0] = replace(ours[0], finish_reason=FinishReason.LENGTH)
    scores = collapse(tuple(ours), answers("x", "x", "x", "x", version=0), confidence=0.95)
    assert by_name(scores) == {
        "collapse.length_ratio": 3.0,
        "collapse.repetition": 0.25,
        "collapse.truncated": 0.25,
        "collapse.empty": 0.25,
    }


@pytest.mark.parametrize(
    "text",
    [
        "London London London London",
        "The capital is the capital is the capital is",
        "Paris! " * 4,
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "I said hahahahahahahahahahahahaha",
        "😊" * 30,
        "!" * 40,
        "Fine.\n" + "? " * 30,
        " ".join(f"it is a big red cat number {i % 2} and" for i in range(6)),
    ],
)
def test_loops_are_found_in_words_phrases_letters_and_signs(text: str):
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "It is very, very, very cold.",
        "No, no, no! The capital of France is Paris.",
        "Great question! The capital of France is **Paris**. It lies on the Seine. I hope this helps! 😊",
        "one of the two, one of the three",
        "| a | b | c |\n|-----|-----|-----|-----|-----|\n| 1 | 2 | 3 |\n\n" + "-" * 60,
        "1. cats say meow\n2. dogs say woof\n3. cows say moo\n4. ducks say quack\n5. sheep say baa\n6. pigs say oink",
    ],
)
def test_emphasis_lists_and_tables_are_no_loops(text: str):
    assert not repeats_itself(text)


PROBES = find_probes(Suite.SHARED, PromoteConfig())
REQUIRED = [spec.name for spec in scores_of(PROBES)]


def evaluation(*, champion_version: int = 1, counters: Counters | None = None, **changes: object) -> Report:
    given: dict[str, object] = {
        "candidate": answers("Paris", "Paris", version=2),
        "base": answers("Paris, of course", "Rome", version=0),
        "champion": answers("Paris!", "Paris!", version=1),
        "judge": shorter_wins,
        "is_right": is_paris,
        "confidence": 0.95,
    }
    measured = ProbeInput(**given | changes)  # type: ignore[arg-type]
    return run_suite(
        PROBES, measured, policy_version=2, base_version=0, champion_version=champion_version, counters=counters
    )


def test_an_evaluation_measures_everything_the_gate_requires():
    report = evaluation()
    assert [score.name for score in report.scores] == REQUIRED
    assert (report.policy_version, report.base_version, report.champion_version) == (2, 0, 1)
    champion = report.score("win_rate.vs_champion.ties_half")
    assert champion is not None
    assert champion.value == 1.0


def test_a_champion_that_is_the_base_is_compared_like_any_other():
    base = answers("Paris, of course", "Rome", version=0)
    report = evaluation(base=base, champion=base, champion_version=0)
    for score in ("ties_dropped", "ties_half", "coverage"):
        assert report.score(f"win_rate.vs_base.{score}").value == report.score(f"win_rate.vs_champion.{score}").value


def test_a_broken_judge_takes_its_own_scores_away_and_is_counted(caplog: pytest.LogCaptureFixture):
    def broken(prompt: str, a: str, b: str) -> Literal["A", "B", "C"]:
        raise TimeoutError("the judge is away")

    counters = Counters.empty()
    with caplog.at_level(logging.ERROR):
        report = evaluation(judge=broken, counters=counters)
    assert [score.name for score in report.scores] == [name for name in REQUIRED if not name.startswith("win_rate")]
    assert counters.values == {
        "evaluate.win_rate.vs_base.TimeoutError": 1,
        "evaluate.win_rate.vs_champion.TimeoutError": 1,
    }
    assert "the judge is away" in caplog.text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"candidate": ()}, "v2 answered 0 prompts"),
        ({"base": answers("Paris", version=0)}, "v0 answered 1 prompts, not the candidate's 2"),
        ({"champion": answers("Paris", "Rome", version=0)}, r"v1 are of \[0\]"),
        ({"candidate": tuple(reversed(answers("Paris", "Rome", version=2)))}, "v0 answered 2 prompts"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(changes: dict[str, object], why: str):
    with pytest.raises(DataError, match=why):
        evaluation(**changes)
