"""Turns, and people whose turns are known to be theirs."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from sdpo_ray.records import Consent, FinishReason, Message, Role, Sampling, Turn, VersionSpan


def chat(*texts: str) -> tuple[Message, ...]:
    """User and assistant by turns, a user first."""
    roles = (Role.USER, Role.ASSISTANT)
    return tuple(Message(role=roles[index % 2], content=text) for index, text in enumerate(texts))


def turn(turn_id: str, *texts: str, response: str = "Paris.", at_s: float = 100.0, **changes: Any) -> Turn:
    """An answered request that took one second; `texts` are its messages."""
    fields: dict[str, Any] = {
        "turn_id": turn_id,
        "tenant": "default",
        "user": "",
        "conversation_id": "",
        "consent": Consent.TRAIN,
        "messages": chat(*(texts or ("What is the capital of France?",))),
        "response": response,
        "prompt_ids": (7, 8, 9),
        "response_ids": (1, 2),
        "response_logprobs": (-0.25, -1.5),
        "version_spans": (VersionSpan(policy_version=3, start=0, end=2),),
        "finish_reason": FinishReason.STOP,
        "sampling": Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64, seed=None),
        "started_at_s": at_s,
        "finished_at_s": at_s + 1.0,
    }
    return Turn(**(fields | changes))


def dialogue(name: str, *, follow_ups: int = 1, at_s: float = 100.0, **changes: Any) -> list[Turn]:
    """One person's conversation: an opening of their own, then `follow_ups` reactions."""
    texts = [f"question of {name}"]
    turns = []
    for index in range(follow_ups + 1):
        answer = f"answer {index} to {name}"
        turns.append(turn(f"{name}-{index}", *texts, response=answer, at_s=at_s + 10 * index, **changes))
        texts += [answer, f"shorter, {name} says for the {index + 1}. time"]
    return turns


@dataclass(frozen=True)
class Town:
    """Everything that several people said, in the order in which answers were finished, and who followed what."""

    turns: list[Turn]
    parents: dict[str, str]
    """Follow-up turn to the turn it really follows."""


@st.composite
def towns(draw: st.DrawFn, *, max_turns: int = 14) -> Town:
    """People with few words, so that strangers say the same; they edit, retry, and talk at the same time."""
    people = [(draw(st.sampled_from(["", "", "u1", "u2"])), draw(st.sampled_from(["", "", "c1"]))) for _ in range(3)]
    said: list[list[Turn]] = [[] for _ in people]
    turns: list[Turn] = []
    parents: dict[str, str] = {}
    clock = 0.0
    for index in range(draw(st.integers(1, max_turns))):
        clock += draw(st.sampled_from([0.0, 0.5, 1.0]))
        who = draw(st.integers(0, len(people) - 1))
        finished = [t for t in said[who] if t.finished_at_s <= clock]
        parent = draw(st.sampled_from([None, *finished]))
        words = draw(st.sampled_from(["again", "no"]))
        before = (*parent.messages, Message(role=Role.ASSISTANT, content=parent.response)) if parent else ()
        made = turn(
            f"t{index:02d}",
            response=draw(st.sampled_from(["yes", "yes", "maybe"])),
            messages=(*before, Message(role=Role.USER, content=words)),
            user=people[who][0],
            conversation_id=people[who][1],
            started_at_s=clock,
            finished_at_s=clock + draw(st.sampled_from([0.25, 1.5])),
        )
        if parent:
            parents[made.turn_id] = parent.turn_id
        said[who].append(made)
        turns.append(made)
    return Town(turns=sorted(turns, key=lambda t: (t.finished_at_s, t.turn_id)), parents=parents)
