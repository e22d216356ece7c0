"""`POST /v1/feedback`: a user's feedback on a response, outside the chat; acknowledged once it is on disk."""

import time
from collections.abc import Mapping

from starlette.responses import JSONResponse

from sdpo_ray.capture.consent import default_consent
from sdpo_ray.capture.feedback import read_feedback
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.config import CaptureConfig
from sdpo_ray.errors import DataError
from sdpo_ray.headers import FEEDBACK_ID
from sdpo_ray.records import Consent
from serve.asgi import refuse

RETRY_AFTER_S = 5


async def reply_to_feedback(
    body: bytes, headers: Mapping[str, str], *, tenant: str, recorder: Recorder, capture: CaptureConfig
) -> JSONResponse:
    """Store the feedback in `body` and return the reply. The same feedback sent again gets the same id."""
    try:
        feedback = read_feedback(
            body, headers, tenant=tenant, default=default_consent(capture, tenant), now_s=time.time()
        )
    except DataError as error:
        recorder.feedback.add("not_recorded.bad_request")
        return refuse(400, str(error), "invalid_request_error")
    reply = {"object": "feedback", "turn_id": feedback.turn_id}
    feedback_id = await recorder.record_feedback(feedback)
    if feedback.consent is Consent.NONE:
        return JSONResponse({**reply, "id": None, "stored": False, "reason": "no consent"})
    if feedback_id is None:
        retry = {"retry-after": str(RETRY_AFTER_S)}
        return refuse(503, "the feedback could not be stored: please send it again", "server_error", retry)
    return JSONResponse({**reply, "id": feedback_id, "stored": True}, headers={FEEDBACK_ID: feedback_id})
