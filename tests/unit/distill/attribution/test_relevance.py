"""Follow-ups compared with unrelated ones: the choice of pairs, and the numbers."""

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


def interactions_with(*follow_ups: str, conversations: Sequence[str] = ()) -> list[Interaction]:
    """Interactions t0, t1, ..., each of its own conversation unless `conversations` are given."""
    chat = ChatFormat(CHECKPOINT)
    names = conversations or [f"c{n}" for n in range(len(follow_ups))]
    return [
        replace(interaction(chat, name=f"t{n}", follow_up=text), conversation=name)
        for n, (text, name) in enumerate(zip(follow_ups, names, strict=True))
    ]


def example(source: Interaction, **changes: object) -> Example:
    """An example whose hindsight ids spell the follow-up, so that a test can read it back."""
    fields = {"prompt_ids": (1,), "hindsight_ids": (1, *source.follow_up.encode()), "first_scored": 0} | changes
    return replace(made(source.interaction_id, 1, 1, 2), **fields)  # type: ignore[arg-type]


def follow_up_of(item: Example) -> str:
    return bytes(item.hindsight_ids[1:]).decode()


def picked(interactions: Sequence[Interaction], *, num_probes: int = 64, seed: int = 0) -> dict[str, str]:
    """The unrelated follow-up of each sampled interaction."""
    samples = pick(interactions, [example(each) for each in interactions], example, num_probes=num_probes, seed=seed)
    assert all(sample.own.interaction_id == sample.unrelated.interaction_id for sample in samples)
    assert [follow_up_of(sample.own) for sample in samples] == [
        {each.interaction_id: each.follow_up for each in interactions}[sample.own.interaction_id] for sample in samples
    ]
    return {sample.own.interaction_id: follow_up_of(sample.unrelated) for sample in samples}


def test_each_response_gets_the_follow_up_of_another_conversation_and_each_follow_up_is_used_once():
    unrelated = picked(interactions_with("a", "b", "c", "d", "e"))
    assert unrelated.keys() == {"t0", "t1", "t2", "t3", "t4"}
    assert sorted(unrelated.values()) == ["a", "b", "c", "d", "e"]
    assert all(text != "abcde"[int(name[1])] for name, text in unrelated.items())


def test_a_follow_up_of_the_same_conversation_or_in_the_same_words_is_not_unrelated():
    interactions = interactions_with("Shorter!", "shorter! ", "Why?", "", conversations=["x", "y", "x", "z"])
    for seed in range(20):
        unrelated = picked(interactions, seed=seed)
        # For t0: t1 has the same words, t2 is of its conversation, and t3 is empty.
        assert unrelated.pop("t3") != ""
        assert unrelated == {"t1": "Why?", "t2": "shorter! "}


def test_a_single_conversation_has_no_unrelated_follow_up():
    assert picked(interactions_with("a", "b", conversations=["x", "x"])) == {}


def test_num_probes_samples_are_chosen_by_the_seed():
    interactions = interactions_with(*"abcdefgh")
    assert len(picked(interactions, num_probes=3)) == 3
    assert picked(interactions, num_probes=0) == {}
    assert len({tuple(picked(interactions, num_probes=3, seed=seed)) for seed in range(20)}) > 10
    assert picked(interactions, seed=1) == picked(interactions, seed=1)


def test_responses_that_are_not_scored_or_fit_no_unrelated_follow_up_are_not_sampled():
    interactions = interactions_with("a", "b", "c")
    examples = [example(interactions[0], first_scored=2), *map(example, interactions[1:])]
    (sample,) = pick(
        interactions,
        examples,
        # With another follow-up, the prompt of t1 is cut.
        lambda source: example(source, prompt_ids=(1, 2)) if source.interaction_id == "t1" else example(source),
        num_probes=9,
        seed=0,
    )
    assert sample.own.interaction_id == "t2"
    assert pick(interactions, examples, lambda source: None, num_probes=9, seed=0) == []


def test_signal_and_floor_are_mean_absolute_advantages():
    one, two = (example(each) for each in interactions_with("mine", "theirs"))
    samples = [
        RelevanceSample(own=one, unrelated=replace(one, hindsight_ids=(9,))),
        RelevanceSample(own=two, unrelated=two),
    ]
    table = {
        ((1,), False): [-1.0, -2.0],
        (one.hindsight_ids, True): [-0.5, -3.0],
        ((9,), True): [-1.25, -2.0],
        (two.hindsight_ids, True): [-1.0, -math.inf],
    }

    def scores(examples: Sequence[Example], *, hindsight: bool) -> list[list[float]]:
        return [table[item.hindsight_ids if hindsight else item.prompt_ids, hindsight] for item in examples]

    # The mean of |0.5| and |-1| is 0.75, of |-0.25| and |0| it is 0.125. The second sample is not finite.
    (found,) = measure(samples, scores)
    assert found == Relevance(interaction_id="t0", signal=0.75, floor=0.125)
    assert found.weight == 0.75 / 0.875
    assert measure([], scores) == ()


@pytest.mark.parametrize(
    ("signal", "floor", "weight"), [(0.2, 0.2, 0.5), (0.0, 0.3, 0.0), (1.0, 0.0, 1.0), (0, 0, 0.5)]
)
def test_a_follow_up_with_the_effect_of_an_unrelated_one_weighs_one_half(signal: float, floor: float, weight: float):
    assert Relevance(interaction_id="a", signal=signal, floor=floor).weight == weight


def test_the_relevance_beside_a_candidate_is_read_back(tmp_path: Path):
    assert read_relevance(tmp_path) == ()
    found = (Relevance(interaction_id="a", signal=0.5, floor=0.25),)
    write_json(tmp_path / "relevance.json", found)
    assert read_relevance(tmp_path) == found
