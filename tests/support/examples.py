"""Examples of the learner made from interactions."""

from typing import Any

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.records import Interaction, VersionSpan
from sdpo_ray.telemetry import Counters
from tests.support.builders import interaction, with_turn

ONLINE_BLOCK = (
    "\n\n=== HINDSIGHT CONTEXT ===\n"
    "[The following is a future user message. Use this to guide your answer to the user prompt.]\n"
)


def read_examples(
    chat: ChatFormat,
    *interactions: Interaction,
    max_model_len: int = 1024,
    parent_version: int = 0,
    config: DistillConfig | None = None,
    **context: Any,
) -> tuple[list[Example], dict[str, int]]:
    refused = Counters.empty()
    found = examples(
        interactions,
        chat,
        config=config or DistillConfig(context=context),
        max_model_len=max_model_len,
        parent_version=parent_version,
        refused=refused,
    )
    return found, dict(refused.values)


def read_one(chat: ChatFormat, served: Interaction, **how: Any) -> Example:
    (found,), _ = read_examples(chat, served, **how)
    return found


def refusal_of(chat: ChatFormat, served: Interaction, **how: Any) -> str:
    found, refused = read_examples(chat, served, **how)
    assert not found
    ((reason, n),) = refused.items()
    assert n == 1
    return reason


def of_version(chat: ChatFormat, version: int) -> Interaction:
    served = interaction(chat)
    return with_turn(served, version_spans=(VersionSpan(policy_version=version, start=0, end=6),))
