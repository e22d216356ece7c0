"""One training example: the token ids of an interaction in each of its contexts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PROMPT = "prompt"
"""Name of the context x: the prompt as it was served."""
HINDSIGHT = "hindsight"
"""Name of the context (x, o): x with the follow-up in its last user message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What the learner needs of one interaction. Made by `data.examples`; read by `data.packing`."""

    interaction_id: str
    prompt_ids: tuple[int, ...]
    hindsight_ids: tuple[int, ...]
    """(x, o); equal to `prompt_ids` where the follow-up is empty or the signal does not use it."""
    response_ids: tuple[int, ...]
    first_scored: int
    """Index of the first response token that is scored; the length of the response where none is."""
    sampler_logprobs: tuple[float, ...]
    """One per response token; empty where they are not those of the whole distribution at `temperature` after x."""
    temperature: float
    """Divides the logits in every context, as it did when y was sampled; 1 for a greedy response."""
    weight: float
    """Weight of the sequence in its batch: 1, or less with the age of the policy that answered."""
    extra_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Further contexts that the signal compares, by the names of its `ContextBuilder`s."""

    @property
    def num_scored(self) -> int:
        return len(self.response_ids) - self.first_scored

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest context and the response."""
        contexts = (self.prompt_ids, self.hindsight_ids, *self.extra_ids.values())
        return max(map(len, contexts)) + len(self.response_ids)

    def context_ids(self, name: str) -> tuple[int, ...]:
        """Token ids of the context `name`. Raises KeyError where the example was built without it."""
        if name == PROMPT:
            return self.prompt_ids
        return self.hindsight_ids if name == HINDSIGHT else self.extra_ids[name]
