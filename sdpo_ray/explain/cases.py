"""Read interactions to explain from a JSON file.

Two forms are accepted. This project's own is one object or a list of them,

    {"prompt": ..., "completion": ..., "user_response": ..., "unrelated": ...}

with `messages` instead of `prompt` for a conversation; `completion`, `unrelated` and `id` are optional. The other is
the SDPO authors' `signal_analysis_cases.json`, which has no completions.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Message, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One interaction of a file. Made by `read_cases`; read by `jobs.explain`."""

    name: str
    messages: tuple[Message, ...]
    completion: str | None
    """None if the policy is to sample it."""
    follow_up: str
    unrelated: str | None
    """A follow-up that has nothing to do with the answer: the control."""


class _OwnCase(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    user_response: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    completion: str | None = None
    unrelated: str | None = None
    id: str | None = None


class _AuthorsCase(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    raw_prompt: str
    feedback_followup: str
    unrelated_followup: str


class _AuthorsFile(msgspec.Struct, frozen=True, kw_only=True):
    cases: tuple[_AuthorsCase, ...]


def read_cases(path: Path) -> list[Case]:
    """The cases of a file, in order. Raises ConfigError that names the faulty field or case."""
    try:
        raw = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    try:
        if isinstance(raw, dict) and "cases" in raw:
            found = [_of_authors(each) for each in msgspec.convert(raw, _AuthorsFile).cases]
        else:
            listed = raw if isinstance(raw, list) else [raw]
            found = [_own(each, number) for number, each in enumerate(msgspec.convert(listed, list[_OwnCase]), start=1)]
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; see the forms in sdpo_ray/explain/cases.py") from None
    if not found:
        raise ConfigError(f"{path} holds no case")
    if twice := [name for name, n in Counter(case.name for case in found).items() if n > 1]:
        raise ConfigError(f"{path}: two cases have the id {twice[0]!r}")
    return found


def _own(case: _OwnCase, number: int) -> Case:
    name = case.id or f"case-{number}"
    if (case.prompt is None) == (not case.messages):
        raise ConfigError(f"{name}: give either prompt or messages")
    messages = case.messages or (Message(role=Role.USER, content=case.prompt or ""),)
    if messages[-1].role is not Role.USER:
        raise ConfigError(f"{name}: the last of the messages must be the user's")
    return Case(
        name=name,
        messages=messages,
        completion=case.completion,
        follow_up=case.user_response,
        unrelated=case.unrelated,
    )


def _of_authors(case: _AuthorsCase) -> Case:
    return Case(
        name=case.id,
        messages=(Message(role=Role.USER, content=case.raw_prompt),),
        completion=None,
        follow_up=case.feedback_followup,
        unrelated=case.unrelated_followup,
    )
