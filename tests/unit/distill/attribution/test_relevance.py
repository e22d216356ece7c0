"""Follow-ups held against strangers': who is compared with whom, and the numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from sdpo_ray.distill.attribution.relevance import RelevanceSample, measure, pick, read_relevance
from sdpo_ray.distill.data.example import Example
from sdpo_ray.io.files import write_json
from sdpo_ray.records import Interaction, Relevance
from tests.support.builders import interaction
from tests.support.paths import CHECKPOINT
from tests.support.training_batches import made


def said(*follow_ups: str, conversations: Sequence[str] = ()) -> list[Interaction]:
    """Interactions t0, t1, ... of a conversation each, unless others are named."""
    chat = ChatFormat(CHECKPOINT)
    names = conversations or [f"c{n}" for n in range(len(follow_ups))]
    return [
        replace(interaction(chat, name=f"t{n}", follow_up=text), conversation=name)
        for n, (text, name) in enumerate(zip(follow_ups, names, strict=True))
    ]


def example(asked: Interaction, **changes: object) -> Example:
    """An example whose ids in hindsight spell the follow-up, so that a test can read it back."""
    fields = {"prompt_ids": (1,), "hindsight_ids": (1, *asked.follow_up.encode()), "first_scored": 0} | changes
    return replace(made(asked.interaction_id, 1, 1, 2), **fields)  # type: ignore[arg-type]


def told(item: Example) -> str:
    return bytes(item.hindsight_ids[1:]).decode()


def picked(interactions: Sequence[Interaction], *, num_probes: int = 64, seed: int = 0) -> dict[str, str]:
    """The stranger's follow-up of each probe."""
    probes = pick(interactions, [example(each) for each in interactions], example, num_probes=num_probes, seed=seed)
    assert all(probe.own.interaction_id == probe.stranger.interaction_id for probe in probes)
    assert [told(probe.own) for probe in probes] == [
        {each.interaction_id: each.follow_up for each in interactions}[probe.own.interaction_id] for probe in probes
    ]
    return {probe.own.interaction_id: told(probe.stranger) for probe in probes}


def test_every_answer_meets_the_follow_up_of_another_conversation_and_every_follow_up_another_answer():
    strangers = picked(said("a", "b", "c", "d", "e"))
    assert strangers.keys() == {"t0", "t1", "t2", "t3", "t4"}
    assert sorted(strangers.values()) == ["a", "b", "c", "d", "e"]
    assert all(text != "abcde"[int(name[1])] for name, text in strangers.items())


def test_nobody_of_the_same_conversation_or_of_the_same_words_is_a_stranger():
    interactions = said("Shorter!", "shorter! ", "Why?", "", conversations=["x", "y", "x", "z"])
    for seed in range(20):
        strangers = picked(interactions, seed=seed)
        # t0 has t1, which says the same, t2 of its own conversation, and t3, which says nothing.
        assert strangers.pop("t3") != ""
        assert strangers == {"t1": "Why?", "t2": "shorter! "}


def test_one_conversation_alone_has_no_floor():
    assert picked(said("a", "b", conversations=["x", "x"])) == {}


def test_the_seed_chooses_as_many_as_asked_for():
    interactions = said(*"abcdefgh")
    assert len(picked(interactions, num_probes=3)) == 3
    assert picked(interactions, num_probes=0) == {}
    assert len({tuple(picked(interactions, num_probes=3, seed=seed)) for seed in range(20)}) > 10
    assert picked(interactions, seed=1) == picked(interactions, seed=1)


def test_answers_that_are_not_scored_or_fit_no_stranger_are_no_probes():
    interactions = said("a", "b", "c")
    examples = [example(interactions[0], first_scored=2), *map(example, interactions[1:])]
    (probe,) = pick(
        interactions,
        examples,
        # Behind t1 the other follow-up leaves no room for the whole prompt, behind t2 none for anything.
        lambda asked: example(asked, prompt_ids=(1, 2)) if asked.interaction_id == "t1" else example(asked),
        num_probes=9,
        seed=0,
    )
    assert probe.own.interaction_id == "t2"
    assert pick(interactions, examples, lambda asked: None, num_probes=9, seed=0) == []


def test_signal_and_floor_are_mean_sizes_of_the_advantages():
    one, two = (example(each) for each in said("mine", "theirs"))
    probes = [
        RelevanceSample(own=one, stranger=replace(one, hindsight_ids=(9,))),
        RelevanceSample(own=two, stranger=two),
    ]
    table = {
        ((1,), False): [-1.0, -2.0],
        (one.hindsight_ids, True): [-0.5, -3.0],
        ((9,), True): [-1.25, -2.0],
        (two.hindsight_ids, True): [-1.0, -math.inf],
    }

    def scores(examples: Sequence[Example], *, hindsight: bool) -> list[list[float]]:
        return [table[item.hindsight_ids if hindsight else item.prompt_ids, hindsight] for item in examples]

    # |0.5| and |-1| make 0.75, |-0.25| and |0| make 0.125. What is not finite is no number to record.
    (found,) = measure(probes, scores)
    assert found == Relevance(interaction_id="t0", signal=0.75, floor=0.125)
    assert found.weight == 0.75 / 0.875
    assert measure([], scores) == ()


@pytest.mark.parametrize(
    ("signal", "floor", "weight"), [(0.2, 0.2, 0.5), (0.0, 0.3, 0.0), (1.0, 0.0, 1.0), (0, 0, 0.5)]
)
def test_a_follow_up_like_any_other_weighs_one_half(signal: float, floor: float, weight: float):
    assert Relevance(interaction_id="a", signal=signal, floor=floor).weight == weight


def test_what_lies_beside_a_candidate_is_read_back(tmp_path: Path):
    assert read_relevance(tmp_path) == ()
    found = (Relevance(interaction_id="a", signal=0.5, floor=0.25),)
    write_json(tmp_path / "relevance.json", found)
    assert read_relevance(tmp_path) == found
