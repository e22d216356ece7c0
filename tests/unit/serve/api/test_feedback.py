"""`POST /v1/feedback`, over the real middleware."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import CaptureConfig, TenantConfig
from sdpo_ray.records import Consent, Feedback, Thumb
from serve.gateway.auth import UserAuthenticator
from tests.support.recorded_engine import MemoryLog, client_of, recorder_of

SAID = {"turn_id": "turn-1", "comment": "Too long.", "user": "alice"}


class Desk:
    """A place where feedback is handed in."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.log = MemoryLog()
        self.recorder = recorder_of(folder, self.log)
        self._options = options

    def post(self, body: Any, **headers: str) -> httpx.Response:
        async def send() -> httpx.Response:
            async with client_of(self.recorder, lambda _: "", **self._options) as client:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                return await client.post("/v1/feedback", content=content, headers=headers)

        return asyncio.run(send())

    @property
    def stored(self) -> list[Feedback]:
        assert all(isinstance(event, Feedback) for event in self.log.events)
        return [event for event in self.log.events if isinstance(event, Feedback)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_feedback_is_acknowledged_once_it_is_durable(desk: Desk, tmp_path: Path) -> None:
    reply = desk.post(SAID)
    (feedback,) = desk.stored
    assert reply.status_code == 200
    assert reply.json() == {"object": "feedback", "id": feedback.feedback_id, "turn_id": "turn-1", "stored": True}
    assert reply.headers["x-sdpo-feedback-id"] == feedback.feedback_id
    assert reply.headers["x-sdpo-policy-version"] == "0"
    pseudonym = Pseudonyms.load(tmp_path / "pseudonyms.json").of("alice")
    assert (feedback.turn_id, feedback.tenant, feedback.user) == ("turn-1", "default", pseudonym)
    assert (feedback.comment, feedback.thumb, feedback.edited) == ("Too long.", None, "")
    assert desk.recorder.feedback.values == {"recorded": 1}
    assert desk.recorder.counters.values == {}


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ({"thumb": "down"}, ("", Thumb.DOWN, "")),
        ({"thumb": "up", "comment": None, "edited": " "}, ("", Thumb.UP, "")),
        ({"edited": "Paris.", "comment": "\n"}, ("", None, "Paris.")),
        ({"edited": " Paris.", "comment": " no ", "thumb": "down"}, (" no ", Thumb.DOWN, " Paris.")),
    ],
)
def test_a_thumb_and_an_edited_answer_are_feedback_too(desk: Desk, said: dict[str, Any], stored: Any) -> None:
    assert desk.post({"turn_id": "turn-1"} | said).status_code == 200
    assert [(each.comment, each.thumb, each.edited) for each in desk.stored] == [stored]


def test_the_same_words_get_the_same_id_over_a_rotation_and_other_words_another(desk: Desk, tmp_path: Path) -> None:
    first = desk.post(SAID).json()["id"]
    Pseudonyms.load(tmp_path / "pseudonyms.json").rotate()
    changes: list[dict[str, Any]] = [
        {"turn_id": "turn-2"}, {"user": "bob"}, {"comment": "Too short."}, {"comment": "", "edited": "Too long."},
        {"thumb": "up"}, {"thumb": "down"},
    ]  # fmt: skip
    ids = [Desk(tmp_path).post(SAID | change).json()["id"] for change in ({}, *changes)]
    assert ids[0] == first
    assert len(set(ids)) == 1 + len(changes)


BAD = {
    "no JSON": b"{nope",
    "no object": [],
    "not UTF-8": b'{"turn_id": "\xff", "thumb": "up"}',
    "a lone surrogate": b'{"turn_id": "t", "comment": "\\ud800"}',
    "nested too deeply": b'{"turn_id": "t", "thumb": "up", "metadata": {"a": %s%s}}' % (b"[" * 99999, b"]" * 99999),
    "an unknown field": SAID | {"rating": 5},
    "no turn": {"comment": "x"},
    "an empty turn": SAID | {"turn_id": ""},
    "nothing said": {"turn_id": "turn-1"},
    "blanks": {"turn_id": "turn-1", "comment": "  ", "edited": "\n"},
    "a wrong type": SAID | {"comment": 7},
    "an unknown thumb": SAID | {"thumb": "sideways"},
    "a thumb that is a number": SAID | {"thumb": 1},
    "a comment too long": SAID | {"comment": "x" * 10_001},
    "an edited answer too long": SAID | {"edited": "x" * 100_001},
    "unknown words of consent": SAID | {"metadata": {"consent": "perhaps"}},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_bad_feedback_gets_an_error_in_openais_shape(desk: Desk, body: Any) -> None:
    reply = desk.post(body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", 400, None)
    assert error["message"]
    assert desk.stored == []
    assert desk.recorder.feedback.values == {"not_recorded.bad_request": 1}


def test_a_body_over_the_limit_and_another_method_are_refused(desk: Desk) -> None:
    assert desk.post(b" " * (5 << 20)).status_code == 413

    async def get() -> httpx.Response:
        async with client_of(desk.recorder, lambda _: "") as client:
            return await client.get("/v1/feedback")

    assert asyncio.run(get()).status_code == 405


@pytest.mark.parametrize(
    ("body", "headers"),
    [({"metadata": {"consent": "none"}}, {}), ({}, {"x-sdpo-consent": "none"})],
    ids=["body", "header"],
)
def test_without_consent_nothing_is_stored_and_the_reply_says_so(desk: Desk, body: Any, headers: Any) -> None:
    reply = desk.post(SAID | body, **headers)
    assert reply.status_code == 200
    assert reply.json() == {
        "object": "feedback", "id": None, "turn_id": "turn-1", "stored": False, "reason": "no consent",
    }  # fmt: skip
    assert "x-sdpo-feedback-id" not in reply.headers
    assert desk.stored == []
    assert desk.recorder.feedback.values == {"not_recorded.no_consent": 1}


def test_what_could_not_be_stored_is_to_be_sent_again(desk: Desk) -> None:
    desk.log.error = OSError(28, "No space left on device")
    reply = desk.post(SAID)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) > 0
    assert reply.json()["error"]["type"] == "server_error"
    assert desk.recorder.feedback.values == {"not_recorded.OSError": 1}
    desk.log.error = None
    assert desk.post(SAID).json()["stored"] is True


def test_feedback_is_redacted_before_it_is_stored(desk: Desk) -> None:
    desk.post(SAID | {"comment": "Write to jane.doe@example.org.", "edited": "Ask jane.doe@example.org"})
    (feedback,) = desk.stored
    assert "jane" not in feedback.comment + feedback.edited
    assert [(each.kind, each.n) for each in feedback.redactions] == [("email", 2)]
    assert desk.recorder.redactions.values == {"email": 2}


def test_the_tenant_and_its_consent_come_with_the_key(tmp_path: Path) -> None:
    key, keys = ApiKeys.load(tmp_path / "api_keys.json").add("acme")
    private, _ = keys.add("private")
    capture = CaptureConfig(tenants={"private": TenantConfig(consent=Consent.NONE)})
    desk = Desk(tmp_path, authenticator=UserAuthenticator(tmp_path / "api_keys.json"), capture=capture)
    refused = desk.post(SAID)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert desk.post(SAID, authorization=f"Bearer {key}").json()["stored"] is True
    assert desk.post(SAID, authorization=f"Bearer {private}").json()["stored"] is False
    assert [feedback.tenant for feedback in desk.stored] == ["acme"]


def test_the_evaluation_engine_takes_no_feedback() -> None:
    async def post() -> httpx.Response:
        async with client_of(None, lambda _: "") as client:
            return await client.post("/v1/feedback", json=SAID)

    assert asyncio.run(post()).status_code == 404
