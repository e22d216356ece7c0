"""OpenAI's specification through schemathesis: valid and invalid requests on every path that we serve."""

import copy
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from tests.fuzz.replies import EXAMPLES, TIMEOUT_S, assert_in_order, assert_still_answers
from tests.support.paths import SHARED_DATA
from tests.support.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
SPEC = SHARED_DATA / "openai_openapi" / "openapi.yaml"
SERVED = ("/chat/completions", "/completions", "/models", "/models/{model}")


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The specification, restricted to the paths that we serve."""
    if not SPEC.exists():
        pytest.skip(f"OpenAI's specification is not here: {SPEC}")
    whole = yaml.load(SPEC.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    paths = {path: copy.deepcopy(whole["paths"][path]) for path in SERVED}
    return {**whole, "paths": paths, "components": _needed(whole, paths), "security": []}


def _needed(whole: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    """The components that the paths refer to, directly or indirectly."""
    needed: dict[str, Any] = {}
    waiting: list[Any] = [paths]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            reference = value.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/components/"):
                _, _, kind, name = reference.split("/")
                if name not in needed.setdefault(kind, {}):
                    needed[kind][name] = whole["components"][kind][name]
                    waiting.append(needed[kind][name])
    return needed


def ours(body: Any) -> Any:
    """The request for our model, with a short answer."""
    if not isinstance(body, dict):
        return body
    limits = {
        name: min(body[name], 8) for name in ("max_tokens", "max_completion_tokens") if type(body.get(name)) is int
    }
    return {**body, "model": "policy", "max_tokens": 8, **limits}


@pytest.mark.parametrize(
    ("path", "method", "kind"),
    [
        ("/chat/completions", "POST", "positive"),
        ("/chat/completions", "POST", "negative"),
        ("/completions", "POST", "positive"),
        ("/completions", "POST", "negative"),
        ("/models/{model}", "GET", "positive"),
    ],
)
def test_every_request_of_the_specification_is_answered_or_refused(
    served: Served, spec: dict[str, Any], path: str, method: str, kind: str
):
    import schemathesis

    schema = schemathesis.openapi.from_dict(spec)
    cases = schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(kind))
    answered = 0

    @settings(
        derandomize=True,
        max_examples=max(EXAMPLES // 5, 20),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def run(case: Any) -> None:
        nonlocal answered
        if case.method == "POST":
            case.body = ours(case.body)
        reply = case.call(base_url=f"{served.url}/v1", timeout=TIMEOUT_S)
        headers = [(name, value) for name, values in reply.headers.items() for value in values]
        assert_in_order(httpx.Response(reply.status_code, headers=headers, content=reply.content))
        answered += reply.status_code == 200

    run()
    assert_still_answers(served)
