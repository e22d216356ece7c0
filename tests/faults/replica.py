"""A replica without an engine: the recorder and the journal, under simulated users who never stop."""

import asyncio
import sys
import time
from pathlib import Path
from uuid import uuid4

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.feedback import FeedbackRequest
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.config import CaptureConfig
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent
from sdpo_ray.redaction import Redactor
from tests.faults.crash import MAX_BYTES, SEGMENT_BYTES, ready
from tests.faults.simulated_users import FOLLOW_UPS, Note, Notes, Person, people, read_notes
from tests.support.engine_responses import answered

SEATS = 6
PAUSE_S = 0.1
TENANT = "default"


async def talk(replica: str, path: Path, recorder: Recorder, seat: int) -> None:
    notes = Notes(path)
    for person in people(replica, read_notes(path), seats=SEATS, seat=seat):
        while len(person.read) <= FOLLOW_UPS:
            if not await ask(person, recorder, notes) and person.is_stranger:
                break
            await asyncio.sleep(PAUSE_S)


async def ask(person: Person, recorder: Recorder, notes: Notes) -> bool:
    """Send one message and record its answer. Returns whether there was a receipt."""
    turn_id = f"turn-{uuid4().hex}"
    answer = person.answer(turn_id)
    follows = person.read[-1][0] if person.read else ""
    asked = ChatRequest(
        turn_id=turn_id,
        tenant=TENANT,
        user=person.user,
        conversation_id=person.conversation_id,
        consent=Consent.TRAIN,
        messages=person.messages,
        started_at_s=time.time(),
    )
    step = len(person.read)
    notes.write(Note(what="ask", turn_id=turn_id, person=person.number, step=step, follows=follows, answer=answer))
    stored = await recorder.record(asked, answered(answer))
    notes.write(Note(what="receipt" if stored else "no_receipt", turn_id=turn_id), durable=True)
    person.read.append((turn_id, answer))
    if person.number % 4 == 1:
        await comment(turn_id, person, recorder, notes)
    return stored


async def comment(turn_id: str, person: Person, recorder: Recorder, notes: Notes) -> None:
    """A comment on an answer, sent twice."""
    given = FeedbackRequest(
        turn_id=turn_id,
        tenant=TENANT,
        user=person.user,
        consent=Consent.TRAIN,
        comment="Shorter next time.",
        thumb=None,
        edited="",
        given_at_s=time.time(),
    )
    notes.write(Note(what="comment", turn_id=turn_id))
    for _ in range(2):
        if await recorder.record_feedback(given) is not None:
            notes.write(Note(what="comment_receipt", turn_id=turn_id), durable=True)


async def main(root: Path, replica: str) -> None:
    layout = Layout(root)
    log = JournalLog(layout.journal, segment_bytes=SEGMENT_BYTES, segment_s=1.0, max_bytes=MAX_BYTES, name=replica)
    pseudonyms = Pseudonyms.load(layout.pseudonym_keys)
    capture = CaptureConfig()
    recorder = Recorder(
        log, Redactor(capture.redact, phone_regions=capture.phone_regions), lambda: pseudonyms, timeout_s=15
    )
    ready(root)
    path = root / f"{replica}.notes"
    await asyncio.gather(*(talk(replica, path, recorder, seat) for seat in range(SEATS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
