"""Batches of known tokens, one step over them without workers, and unpacked references."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT, Example
from sdpo_ray.distill.data.packing import MicroBatch, PackedRows
from sdpo_ray.distill.loss.advantages import LossTerms
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss, TeacherScores
from sdpo_ray.distill.loss.step import StepPolicy, StepSums, run_step
from sdpo_ray.distill.model.packed_lm import PackedLM
from sdpo_ray.distill.signals.registry import signal_of
from tests.support.configs import PAPER

CPU = torch.device("cpu")

SIGNALS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "sampled, mixed": {"log_mix": 0.9},
    "sampled, clipped": {"clip": 0.5},
    "sampled, mixed and clipped": {"log_mix": 0.9, "clip": 0.5},
    "sampled, centred": {"baseline": "seq_mean"},
    "sampled, KL as baseline": {"baseline": "token_kl"},
    "sampled, KL as baseline, mixed": {"baseline": "token_kl", "log_mix": 0.9},
    "top 5": {"estimator": "topk_reverse_kl", "top_k": 5},
    "top 5, mixed": {"estimator": "topk_reverse_kl", "top_k": 5, "log_mix": 0.9},
    "full": {"estimator": "full_kl"},
    "full, mixed": {"estimator": "full_kl", "log_mix": 0.9},
}
"""Every estimator, baseline and bound."""


def learns(*, objective: str = "sdpo", kl_penalty: float = 0.0, logits_mib: int = 128, **signal: Any) -> DistillConfig:
    """The paper's algorithm with `signal` changed."""
    values: dict[str, Any] = {
        "objective": objective,
        "signal": PAPER["signal"] | signal,
        "drift": {"kl_penalty": kl_penalty},
        "workers": {"logits_mib": logits_mib},
    }
    return DistillConfig(**PAPER | values)


def made(name: str, num_prompt: int, num_block: int, num_response: int, **changes: Any) -> Example:
    """An example of these lengths; its random ids depend on its name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 250, (n,), generator=generator).tolist())

    prompt, block, response = ids(num_prompt), ids(num_block), ids(num_response)
    fields: dict[str, Any] = {
        "interaction_id": name,
        "prompt_ids": prompt,
        "hindsight_ids": prompt + block,
        "response_ids": response,
        "first_scored": 0,
        "sampler_logprobs": (),
        "temperature": 1.0,
        "weight": 1.0,
    }
    return Example(**(fields | changes))


def batch() -> list[Example]:
    """Five interactions, 33 tokens, 31 of them scored; two temperatures; one has half the weight of the others."""
    return [
        made("a", 5, 4, 7),
        made("b", 9, 6, 1, temperature=0.7),
        made("c", 2, 11, 12, first_scored=2),
        made("d", 1, 1, 3, temperature=0.7, weight=0.5),
        made("e", 20, 5, 10),
    ]


def policy(model: Any, *, teacher: Any = None, baselined: bool = False, **changes: Any) -> StepPolicy:
    """One worker's policy that leaves gradients in `model`; another model may be the teacher."""
    student = PackedLM(model)
    other = student if teacher is None else PackedLM(teacher)
    active = [student]

    @contextmanager
    def weights() -> Iterator[None]:
        active[0] = other
        yield
        active[0] = student

    fields: dict[str, Any] = {
        "run": lambda context, work: active[0](context, work),
        "teacher": weights,
        "baselined": baselined,
        "own_head": teacher is not None,
        "device": CPU,
    }
    return StepPolicy(**(fields | changes))


def step(
    model: Any,
    parts: Sequence[MicroBatch],
    config: DistillConfig,
    learner: StepPolicy | None = None,
    *,
    baseline: float = 0.0,
) -> tuple[StepSums, Tensor]:
    """The sums of one step, and its gradient as one vector."""
    model.zero_grad()
    sums = run_step(parts, learner or policy(model), config, baseline=baseline)
    return sums, gradient(model)


def gradient(model: Any) -> Tensor:
    """The gradient of all parameters as one vector."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def alone(model: Any, item: Example, *, hindsight: bool) -> Tensor:
    """Log-probs [T, V] at the scored tokens: one sequence, whole logits, no packing. `model` is transformers' own."""
    context = item.hindsight_ids if hindsight else item.prompt_ids
    logits_SV = model(input_ids=torch.tensor([context + item.response_ids]), use_cache=False).logits[0]
    first = len(context) + item.first_scored - 1
    found: Tensor = (logits_SV[first:-1] / item.temperature).log_softmax(-1)
    return found


def chosen(log_TV: Tensor, item: Example) -> Tensor:
    """The scored tokens' own log-probs, [T]."""
    return log_TV.gather(-1, torch.tensor(item.response_ids[item.first_scored :])[:, None])[:, 0]


def table(
    target_N: Tensor,
    config: DistillConfig,
    *,
    weight_N: Tensor,
    teacher_NV: Tensor | None = None,
    reference_NV: Tensor | None = None,
    row_N: Tensor | None = None,
    sampler_logp_N: Tensor | None = None,
    base_logp_N: Tensor | None = None,
) -> SDPOLoss:
    """The loss of sequences whose logits are given: `table(...).loss(logits_NV, torch.eye(V))` in fp64."""
    count = len(target_N)
    unknown_N = torch.full((count,), math.nan, dtype=torch.float64)

    def score(logits_NV: Tensor) -> Tensor:
        """Logits as they are for a signal that compares distributions, else log-probs of the targets."""
        if signal.compares_distributions:
            return logits_NV
        return logits_NV.gather(-1, target_N[:, None])[:, 0] - logits_NV.logsumexp(-1)

    signal = signal_of(config)
    context = PackedRows(
        ids_1S=target_N[None],
        positions_1S=torch.arange(count)[None],
        bounds=torch.tensor([0, count], dtype=torch.int32),
        longest=count,
        scored_N=torch.arange(count),
        row_N=torch.arange(count) if row_N is None else row_N,
        target_N=target_N,
        temperature_N=torch.ones(count),
    )
    terms = LossTerms(
        weight_N=weight_N,
        row_N=context.row_N,
        sampler_logp_N=unknown_N if sampler_logp_N is None else sampler_logp_N,
        base_logp_N=unknown_N if base_logp_N is None else base_logp_N,
    )
    given = {HINDSIGHT: teacher_NV, PROMPT: reference_NV}
    scores = {name: score(logits_NV) for name, logits_NV in given.items() if logits_NV is not None}
    return SDPOLoss(context, terms, TeacherScores(by_context={HINDSIGHT: unknown_N} | scores), config, signal)


class Tree:
    """Every response of `length` tokens over `vocabulary`; a policy is one row of logits per prefix, [P, V]."""

    def __init__(self, vocabulary: int, length: int) -> None:
        prefixes = [each for n in range(length) for each in product(range(vocabulary), repeat=n)]
        index = {prefix: row for row, prefix in enumerate(prefixes)}
        answers = list(product(range(vocabulary), repeat=length))
        self.shape = (len(prefixes), vocabulary)
        self.prefixes = prefixes
        self.length = length
        self.prefix_N = torch.tensor([index[y[:t]] for y in answers for t in range(length)])
        self.target_N = torch.tensor([token for y in answers for token in y])
        self.row_N = torch.arange(len(answers)).repeat_interleave(length)

    def logp(self, logits_PV: Tensor) -> Tensor:
        """log pi(y_t | y_<t) of every token of every answer, [answers, length]."""
        return logits_PV.log_softmax(-1)[self.prefix_N, self.target_N].view(-1, self.length)

    def expected(self, student_PV: Tensor, teacher_PV: Tensor, config: DistillConfig, **known: Any) -> Tensor:
        """The expected loss over the student's own responses, with gradient; their probabilities are constants."""
        probability_N = self.logp(student_PV).sum(-1).exp().detach().repeat_interleave(self.length)
        student = table(
            self.target_N,
            config,
            weight_N=probability_N,
            teacher_NV=teacher_PV[self.prefix_N],
            row_N=self.row_N,
            **known,
        )
        return student.loss(student_PV[self.prefix_N], torch.eye(self.shape[1], dtype=torch.float64))

    def visited(self, student_PV: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """sum over prefixes of P(prefix) value(log pi [P, V]) [P]; the probabilities are constants."""
        log_PV = student_PV.log_softmax(-1)
        index = {prefix: row for row, prefix in enumerate(self.prefixes)}
        reach = [
            math.exp(sum(log_PV[index[prefix[:t]], token].item() for t, token in enumerate(prefix)))
            for prefix in self.prefixes
        ]
        return (torch.tensor(reach, dtype=torch.float64) * value(log_PV)).sum()
