"""Golden test 31: a policy learns its teacher's preference, and the opposite when the preference flips."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.data.packing import PackedRows, micro_batches
from sdpo_ray.distill.loss.step import StepPolicy, run_step
from sdpo_ray.distill.model.load import load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM
from tests.support.builders import tiny_policy
from tests.support.training_batches import CPU, learns

_PROMPT, _SAID = (5, 17, 40, 8), (90, 91, 92)
_STEPS = 8


class _School:
    """A policy that answers one prompt with one token, and a teacher that prefers or rejects one token."""

    def __init__(self, path: Path, config: DistillConfig) -> None:
        self._model = load_packed(tiny_policy(path))
        self._scorer = PackedLM(self._model)
        self._config = config
        self._teaching = False
        self.begin_update(taste=-3.0)
        self.token = int(self.probabilities().argmax())

    def begin_update(self, *, taste: float) -> None:
        """Make a new optimizer; `taste` is added to the logit of the token that the follow-up is about."""
        self._taste = taste
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=2e-4, weight_decay=0.0)

    def probabilities(self) -> torch.Tensor:
        with torch.no_grad():
            ids, bounds = torch.tensor([_PROMPT]), torch.tensor([0, len(_PROMPT)], dtype=torch.int32)
            found: torch.Tensor = (
                self._model(input_ids=ids, cu_seq_lens_q=bounds, max_length_q=len(_PROMPT), use_cache=False)
                .logits[0, -1]
                .softmax(-1)
            )
        return found

    def learn(self) -> None:
        """One step over all responses, each weighted by its probability, so that no sampling is involved."""
        policy = StepPolicy(
            run=self._run,
            teacher=self._teacher,
            device=CPU,
        )
        likely = self.probabilities().tolist()
        answers = [
            Example(
                interaction_id=f"{token:03d}",
                prompt_ids=_PROMPT,
                hindsight_ids=_PROMPT + _SAID,
                response_ids=(token,),
                first_scored=0,
                sampler_logprobs=(),
                temperature=1.0,
                weight=len(likely) * probability,
            )
            for token, probability in enumerate(likely)
        ]
        self._optimizer.zero_grad()
        run_step(micro_batches(answers, 4096), policy, self._config)
        self._optimizer.step()

    def _run(self, context: PackedRows, work: Any) -> Any:
        if not self._teaching:
            return self._scorer(context, work)

        def taught(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> Any:
            # The student's own logits at the end of the prompt, changed for the one token.
            logits_V = self.probabilities().log()
            logits_V[self.token] += self._taste
            return logits_V.log_softmax(-1)[context.target_N], weight_VD

        return self._scorer(context, taught)

    @contextmanager
    def _teacher(self) -> Iterator[None]:
        self._teaching = True
        yield
        self._teaching = False


@pytest.mark.parametrize("log_mix", [None, 0.9])
def test_golden_31_a_rejected_token_s_probability_falls_each_step_and_recovers_when_the_preference_flips(
    log_mix: float | None, tmp_path: Path
) -> None:
    school = _School(tmp_path, learns(log_mix=log_mix))
    seen = [school.probabilities()[school.token].item()]
    for taste in (-3.0, 3.0):
        school.begin_update(taste=taste)
        for _ in range(_STEPS):
            school.learn()
            seen.append(school.probabilities()[school.token].item())
    falling, rising = seen[: _STEPS + 1], seen[_STEPS:]
    assert falling == sorted(falling, reverse=True), seen
    assert falling[-1] < 0.5 * falling[0]
    assert rising == sorted(rising), seen
    assert rising[-1] > 0.9 * falling[0]
