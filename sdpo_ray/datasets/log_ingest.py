"""Interactions of logs from elsewhere, written into a run's event log: an answer as a turn, what was said as a comment.

From there on they are treated as live ones are: redacted before they are written, admitted or refused by reason,
drawn, erasable. A second import of the same log adds nothing.
"""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace

from sdpo_ray.capture.pairing_keys import keyed_digest
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run
from sdpo_ray.errors import TooManyDigits
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.records import Feedback, Interaction, PairingKeys, Turn
from sdpo_ray.redaction import Redactor, redact_feedback, redact_turn

_IN_FLIGHT = 512
_FIRST_KNOWN_S = 1e8
"""Earlier times are the numbers that stand for unknown ones (`datasets.log_fields.times_of`)."""


def record(interactions: Iterable[Interaction], run: Run) -> tuple[int, int]:
    """Write them and wait until they are durable; how many they were, and how many are tables of numbers.

    What was said at an unknown time counts as said now. Raises OSError where the log takes no more.
    """
    layout = run.layout
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    redactor = Redactor(run.capture.redact, phone_regions=run.capture.phone_regions, presidio=run.capture.presidio)
    log = open_log(layout, run.capture, name="import")
    in_flight: deque[Future[None]] = deque()
    num_recorded = num_refused = 0
    try:
        for interaction in interactions:
            turn, feedback = _events(interaction, pseudonyms, time.time())
            try:
                turn, feedback = redact_turn(turn, redactor), redact_feedback(feedback, redactor)
            except TooManyDigits:
                num_refused += 1
                continue
            in_flight += [log.append(turn), log.append(feedback)]
            num_recorded += 1
            while len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().result()
        for durable in in_flight:
            durable.result()
    finally:
        log.close()
    return num_recorded, num_refused


def _events(interaction: Interaction, pseudonyms: Pseudonyms, now_s: float) -> tuple[Turn, Feedback]:
    stated = interaction.turn
    user, key = pseudonyms.of(stated.user), pseudonyms.pairing_key
    turn = replace(
        stated,
        user=user,
        # Nobody pairs it by its words: what was said of it is known.
        keys=PairingKeys(conversation=keyed_digest(key, "import", stated.tenant, interaction.conversation)),
        started_at_s=_known(stated.started_at_s, now_s),
        finished_at_s=_known(stated.finished_at_s, now_s),
    )
    feedback = Feedback(
        feedback_id=keyed_digest(key, "import", stated.tenant, interaction.interaction_id),
        turn_id=stated.turn_id,
        tenant=stated.tenant,
        user=user,
        consent=stated.consent,
        comment=interaction.follow_up,
        given_at_s=_known(interaction.follow_up_at_s, now_s),
    )
    return turn, feedback


def _known(at_s: float, now_s: float) -> float:
    return at_s if at_s >= _FIRST_KNOWN_S else now_s
