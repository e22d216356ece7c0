from dataclasses import replace

from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback
from sdpo_ray.tables.tombstones import Tombstones
from tests.support.conversations import turn

SAID = turn("t1", tenant="shop", user="k1.ann", at_s=100.0)
GIVEN = Feedback(
    feedback_id="f1", turn_id="t1", tenant="shop", user="k1.ann", consent=Consent.TRAIN, comment="no", given_at_s=101.0
)


def erased(tmp_path, *, upto_s: float = 101.0) -> Tombstones:
    erasures = Tombstones(Layout(tmp_path))
    erasures.add((("shop", "k2.ann"), ("shop", "k1.ann")), upto_s=upto_s)
    return erasures


def test_nobody_is_erased_in_a_run_without_erasures(tmp_path):
    assert not Tombstones(Layout(tmp_path)).covers(SAID)
    assert not any(tmp_path.iterdir())


def test_turns_and_feedback_up_to_the_request_are_covered_under_every_key(tmp_path):
    erasures = erased(tmp_path)
    assert erasures.covers(SAID)
    assert erasures.covers(GIVEN)
    assert erasures.covers(replace(SAID, user="k2.ann"))


def test_what_was_said_later_is_said_anew(tmp_path):
    erasures = erased(tmp_path)
    assert not erasures.covers(replace(SAID, started_at_s=101.5))
    assert not erasures.covers(replace(GIVEN, given_at_s=101.5))


def test_others_are_not_covered(tmp_path):
    erasures = erased(tmp_path)
    for who in ({"user": "k1.bob"}, {"tenant": "bank"}, {"user": ""}, {"tenant": "shopk", "user": "1.ann"}):
        assert not erasures.covers(replace(SAID, **who))


def test_another_process_learns_of_it_at_once_and_the_file_names_nobody(tmp_path):
    elsewhere = Tombstones(Layout(tmp_path))
    assert not elsewhere.covers(SAID)
    erasures = erased(tmp_path)
    erasures.add((("shop", "k1.bob"),), upto_s=200.0)
    # A shipper asks about events that it has read: what was remembered before counts for them.
    assert elsewhere.covers(SAID)
    assert elsewhere.covers(replace(SAID, user="k1.bob"))
    written = Layout(tmp_path).erasures.read_text()
    assert not any(word in written for word in ("ann", "bob", "shop"))


def test_a_second_request_of_one_user_reaches_further(tmp_path):
    erasures = erased(tmp_path)
    erasures.add((("shop", "k1.ann"),), upto_s=300.0)
    assert erasures.covers(replace(SAID, started_at_s=300.0))
    erasures.add((("shop", "k1.ann"),), upto_s=50.0)
    assert erasures.covers(SAID)
