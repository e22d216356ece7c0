from dataclasses import replace

from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback
from sdpo_ray.tables.tombstones import Tombstones
from tests.support.conversations import turn

TURN = turn("t1", tenant="shop", user="k1.ann", at_s=100.0)
GIVEN = Feedback(
    feedback_id="f1", turn_id="t1", tenant="shop", user="k1.ann", consent=Consent.TRAIN, comment="no", given_at_s=101.0
)


def erased(tmp_path, *, upto_s: float = 101.0) -> Tombstones:
    erasures = Tombstones(Layout(tmp_path))
    erasures.add((("shop", "k2.ann"), ("shop", "k1.ann")), upto_s=upto_s)
    return erasures


def test_a_run_without_erasures_covers_no_event(tmp_path):
    assert not Tombstones(Layout(tmp_path)).covers(TURN)
    assert not any(tmp_path.iterdir())


def test_turns_and_feedback_up_to_the_request_are_covered_under_every_key(tmp_path):
    erasures = erased(tmp_path)
    assert erasures.covers(TURN)
    assert erasures.covers(GIVEN)
    assert erasures.covers(replace(TURN, user="k2.ann"))


def test_later_events_are_not_covered(tmp_path):
    erasures = erased(tmp_path)
    assert not erasures.covers(replace(TURN, started_at_s=101.5))
    assert not erasures.covers(replace(GIVEN, given_at_s=101.5))


def test_others_are_not_covered(tmp_path):
    erasures = erased(tmp_path)
    for who in ({"user": "k1.bob"}, {"tenant": "bank"}, {"user": ""}, {"tenant": "shopk", "user": "1.ann"}):
        assert not erasures.covers(replace(TURN, **who))


def test_other_processes_see_a_tombstone_at_once_and_the_file_identifies_nobody(tmp_path):
    elsewhere = Tombstones(Layout(tmp_path))
    assert not elsewhere.covers(TURN)
    erasures = erased(tmp_path)
    erasures.add((("shop", "k1.bob"),), upto_s=200.0)
    # An ingest checks events after it read them: tombstones that were added before that count.
    assert elsewhere.covers(TURN)
    assert elsewhere.covers(replace(TURN, user="k1.bob"))
    written = Layout(tmp_path).erasures.read_text()
    assert not any(word in written for word in ("ann", "bob", "shop"))


def test_a_second_request_of_one_user_reaches_further(tmp_path):
    erasures = erased(tmp_path)
    erasures.add((("shop", "k1.ann"),), upto_s=300.0)
    assert erasures.covers(replace(TURN, started_at_s=300.0))
    erasures.add((("shop", "k1.ann"),), upto_s=50.0)
    assert erasures.covers(TURN)
