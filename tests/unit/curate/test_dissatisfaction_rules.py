"""What counts as a complaint, and the precision and recall of the rules on real follow-ups."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.curate.dissatisfaction_rules import is_dissatisfied
from sdpo_ray.simulate.phrases import HELD_OUT_PRAISES, PRAISES, WORDINGS
from tests.support.paths import SHARED_DATA

HELPFUL = SHARED_DATA / "hh_rlhf" / "derived" / "helpful-base_interactions.jsonl"
CASES = SHARED_DATA / "sdpo_signal_cases" / "signal_analysis_cases.json"
SEEN = {
    16, 51, 82, 129, 186, 187, 221, 241, 242, 244, 248, 286, 287, 320, 335, 385, 415, 428, 477, 491, 497, 539, 541, 542,
    560, 622, 661, 663, 672, 689, 690, 718, 843, 851, 945, 950, 976, 1033, 1076, 1138, 1140, 1277, 1332, 1348, 1362,
    1374, 1397, 1492, 1553, 1580, 1598, 1617, 1647, 1681, 1709, 1755, 1801, 1843, 1845, 1868, 1891, 1945, 2183, 2184,
    2192, 2250, 2280, 2285, 2299, 2335, 2434, 2456, 2469, 2513, 2515, 2561, 2589, 2675, 2697, 2767, 2785, 2798, 2825,
    2885, 3098, 3130, 3191, 3213, 3253, 3277, 3355, 3411,
}  # fmt: skip
"""Complaints among the 640 follow-ups that were drawn with `DRAWN`: the rules were written on these."""
UNSEEN = {
    182, 220, 490, 559, 595, 1082, 1537, 1788, 2068, 2140, 2158, 2209, 2270, 2277, 2284, 2297, 2314, 2324, 2329, 2356,
    2652, 2725, 2739, 2886, 3082, 3173,
}  # fmt: skip
"""Complaints among 240 more, labelled by hand before the rules ran on them; no rule was changed since."""
DRAWN, DRAWN_UNSEEN = ((7, 240), (8, 200), (9, 200)), (10, 240)
"""Seed and size of each sample of lines; no line is drawn twice."""


def read(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"no words of real people: {path.name} is not beside the repository, in shared/data")
    return path.read_text()


def drawn() -> tuple[list[int], list[int]]:
    """Lines of the seen samples, and of the unseen one."""
    samples: list[list[int]] = []
    for seed, size in (*DRAWN, DRAWN_UNSEEN):
        taken = {line for sample in samples for line in sample}
        samples.append(random.Random(seed).sample([line for line in range(3449) if line not in taken], size))
    return [line for sample in samples[:-1] for line in sample], samples[-1]


def precision_and_recall(lines: list[int], complaints: set[int]) -> tuple[float, float]:
    rows: list[dict[str, Any]] = [json.loads(row) for row in read(HELPFUL).splitlines()]
    found = {line for line in lines if is_dissatisfied(rows[line]["user_response"]["content"])}
    assert complaints <= set(lines)
    return len(found & complaints) / len(found), len(found & complaints) / len(complaints)


def test_phrases_of_simulated_users_are_classified():
    wordings = WORDINGS.values()
    complaints = [each for wording in wordings for each in (*wording.complaints, *wording.held_out_complaints)]
    praises = [each for wording in wordings for each in wording.praises] + [*PRAISES, *HELD_OUT_PRAISES]
    assert (len(complaints), len(praises)) == (81, 26)
    assert [each for each in complaints if not is_dissatisfied(each)] == [
        "Say something nice as well.",
        "Show me a happy face.",
        "Where is the emoji?",
        "I want an emoji.",
        "Where is the bold?",
    ]
    assert [each for each in praises if is_dissatisfied(each)] == []


def test_the_papers_cases_are_classified():
    for case in json.loads(read(CASES))["cases"]:
        assert is_dissatisfied(case["feedback_followup"]) is (case["tag"] == "constrain"), case["id"]
        assert not is_dissatisfied(case["unrelated_followup"]), case["id"]


def test_precision_and_recall_on_text_the_rules_were_written_with():
    precision, recall = precision_and_recall(drawn()[0], SEEN)
    assert precision >= 0.82
    assert recall >= 0.79


def test_precision_and_recall_on_text_the_rules_were_not_written_with():
    # Measured: 13 of 26 complaints found, 6 of 214 others taken for one.
    precision, recall = precision_and_recall(drawn()[1], UNSEEN)
    assert precision >= 0.68
    assert recall >= 0.5


@pytest.mark.parametrize(
    "follow_up",
    [
        "No, that's wrong.",
        "Thanks, but I asked about Spain.",
        "ok but it's too long",
        "That isn\u2019t what I meant",
        "You didn't answer my question.",
        "Can you rewrite that without the bullet points?",
        "hmm, that doesnt work",
    ],
)
def test_complaints_in_other_words(follow_up: str):
    assert is_dissatisfied(follow_up)


@pytest.mark.parametrize(
    "follow_up",
    [
        "",
        "  ",
        "thanks!",
        "Yes please.",
        "no",
        "No, I haven't.",
        "And in Spain?",
        "What is 27*4?",
        "Perfect, thank you!",
    ],
)
def test_thanks_replies_and_the_next_question_are_no_complaints(follow_up: str):
    assert not is_dissatisfied(follow_up)


def test_only_the_beginning_is_read():
    assert not is_dissatisfied("What is the capital of Spain? " * 6 + "Your answer was wrong.")
