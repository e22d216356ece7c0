"""Write interactions of imported logs into a run's event log: an answer as a turn, its reaction as a comment.

They are treated like live ones: redacted before they are written, admitted or refused by reason, drawn, erasable. A
second import of the same log adds nothing.
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
"""Earlier times are record numbers in place of unknown times (`datasets.log_fields.times_of`)."""


def ingest_logs(interactions: Iterable[Interaction], run: Run) -> tuple[int, int]:
    """Number of interactions written, all durable, and number refused because they hold too many digits.

    A reaction at an unknown time gets the present time. Raises OSError if the log accepts no more events.
    """
    layout = run.layout
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    redactor = Redactor(run.capture.redact, phone_regions=run.capture.phone_regions, presidio=run.capture.presidio)
    log = open_log(layout, run.capture, name="import")
    in_flight: deque[Future[None]] = deque()
    num_ingested = num_refused = 0
    try:
        for interaction in interactions:
            turn, feedback = _events(interaction, pseudonyms, time.time())
            try:
                turn, feedback = redact_turn(turn, redactor), redact_feedback(feedback, redactor)
            except TooManyDigits:
                num_refused += 1
                continue
            in_flight += [log.append(turn), log.append(feedback)]
            num_ingested += 1
            while len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().result()
        for durable in in_flight:
            durable.result()
    finally:
        log.close()
    return num_ingested, num_refused


def _events(interaction: Interaction, pseudonyms: Pseudonyms, now_s: float) -> tuple[Turn, Feedback]:
    stated = interaction.turn
    user, key = pseudonyms.of(stated.user), pseudonyms.pairing_key
    turn = replace(
        stated,
        user=user,
        # No follow-up key: the reaction is known, so pairing need not search for it by text.
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
