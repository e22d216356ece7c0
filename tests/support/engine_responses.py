"""Engine responses for tests of the recorder without an engine."""

from sdpo_ray.capture.engine_response import EngineResponse
from sdpo_ray.records import FinishReason, Sampling, VersionSpan


def answered(text: str) -> EngineResponse:
    """A response with one token per byte, all with the same log-prob."""
    ids = tuple(text.encode())
    return EngineResponse(
        choice=0,
        response=text,
        prompt_ids=(1, 2),
        response_ids=ids,
        response_logprobs=(-5.5,) * len(ids),
        version_spans=(VersionSpan(policy_version=0, start=0, end=len(ids)),),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=512, seed=None),
    )
