"""A signal that is defined in this module alone: named in the run file, built, packed, estimated and trained with.

It is the control follow-up, A = log p(y|x, o) - log p(y|x, o'), where o' is a neutral message in the same block. Equal
o and o' give exactly 0, and so no gradient.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_ray.chat import HINDSIGHT_BLOCKS, ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import HINDSIGHT_CONTEXT, ContextBuilder
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT, Example
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.distill.data.packing import micro_batches, rows
from sdpo_ray.distill.loss.advantages import advantages
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss
from sdpo_ray.distill.model.lm_head import Gradient
from sdpo_ray.distill.model.load import load_packed, load_policy
from sdpo_ray.distill.signals.registry import signal_of
from sdpo_ray.distill.train.memory import estimate
from sdpo_ray.errors import ConfigError
from sdpo_ray.records import Interaction
from sdpo_ray.telemetry import Counters
from tests.support.builders import interaction, tiny_policy
from tests.support.paths import CHECKPOINT
from tests.support.training_batches import CPU, gradient, learns, policy, step

CONTROL = "control"
NEUTRAL = "What is 27*4?"


def _neutral(interaction: Interaction) -> str:
    return NEUTRAL


@dataclass(frozen=True)
class ControlFollowUp:
    """The whole signal: its contexts, what the teacher scores, its memory, and its loss."""

    config: DistillConfig
    contexts = (HINDSIGHT_CONTEXT, ContextBuilder(name=CONTROL, text=_neutral))
    compares_distributions = False
    num_chunk_tensors = 2

    def teacher_contexts(self, *, scores_prompt: bool) -> tuple[str, ...]:
        return (HINDSIGHT, CONTROL)

    def gradient(self, student: SDPOLoss, hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
        scores = student.teacher.by_context

        def of_chunk(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            logp_C, total_C1 = student.score(logits_CV, part)
            advantage_C = advantages(scores[HINDSIGHT][part], scores[CONTROL][part], self.config.signal)
            coefficient_C = student.policy_gradient(logp_C, advantage_C, part)
            return student.weighted_logprobs(logits_CV, total_C1, logp_C, coefficient_C, part)

        return of_chunk


@dataclass(frozen=True)
class OfDistributions(ControlFollowUp):
    compares_distributions = True


NAME = f"{__name__}:ControlFollowUp"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy"))


def _examples(chat: ChatFormat, *interactions: Interaction, config: DistillConfig) -> list[Example]:
    return examples(interactions, chat, config=config, max_model_len=1024, parent_version=0, refused=Counters.empty())


@pytest.fixture(scope="module")
def built(path: Path) -> list[Example]:
    chat = ChatFormat(path)
    served = (
        interaction(chat, name="a", prompt="2 + 2?", follow_up="Shorter please."),
        interaction(chat, name="b", prompt="Hi", response="Hello there", follow_up="Too formal for me."),
        interaction(chat, name="c", prompt="Why?", response="Because", follow_up=NEUTRAL),
    )
    return _examples(chat, *served, config=learns(estimator=NAME))


def test_its_contexts_are_built_over_the_same_messages(path: Path, built: list[Example]) -> None:
    chat, first = ChatFormat(path), built[0]
    question = f"<|im_start|>user\n2 + 2?{HINDSIGHT_BLOCKS['online']}"
    assert chat.text(first.context_ids(HINDSIGHT)).startswith(f"{question}Shorter please.")
    assert chat.text(first.context_ids(CONTROL)).startswith(f"{question}{NEUTRAL}")
    assert first.context_ids(PROMPT) == first.prompt_ids


def test_its_longest_context_decides_what_fits_into_a_micro_batch(built: list[Example]) -> None:
    longest = max(len(built[0].context_ids(name)) for name in (PROMPT, HINDSIGHT, CONTROL))
    assert built[0].max_tokens == longest + len(built[0].response_ids)
    long = [replace(item, extra_ids={CONTROL: (7,) * 60}) for item in built]
    assert [len(part) for part in micro_batches(long, 2 * long[1].max_tokens)] == [2, 1]
    context = rows(tuple(long), CONTROL, device=CPU)
    assert context.bounds.tolist()[-1] == sum(60 + len(item.response_ids) for item in long)


def test_a_step_trains_with_it(path: Path, built: list[Example]) -> None:
    plain = load_policy(path).double()

    def logprobs(item: Example, name: str) -> Tensor:
        ids = torch.tensor([item.context_ids(name) + item.response_ids])
        log_TV = plain(input_ids=ids).logits[0, len(item.context_ids(name)) - 1 : -1].log_softmax(-1)
        return log_TV.gather(-1, torch.tensor(item.response_ids)[:, None])[:, 0]

    losses = []
    for item in built:
        advantage_T = (logprobs(item, HINDSIGHT) - logprobs(item, CONTROL)).detach()
        losses.append(-(advantage_T * logprobs(item, PROMPT)).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    sums, ours = step(load_packed(path).double(), micro_batches(built, 200), learns(estimator=NAME))
    theirs = gradient(plain)
    assert sums.loss == pytest.approx(expected.item(), rel=1e-5)
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_follow_up_equal_to_the_control_has_an_advantage_and_gradient_of_exactly_zero(
    with_teacher: bool, path: Path, built: list[Example], tmp_path: Path
) -> None:
    model = load_packed(path)
    teacher = load_packed(tiny_policy(tmp_path, seed=1)) if with_teacher else None
    sums, found = step(model, [(built[2],)], learns(estimator=NAME), policy(model, teacher=teacher, baselined=True))
    assert sums.abs_advantage == 0
    assert found.abs().max() == 0


def test_its_declarations_enter_the_memory_estimate() -> None:
    def head(**signal: Any) -> int:
        return estimate(CHECKPOINT, learns(**signal), 512).head

    assert head(estimator=NAME) == head()
    # Two teacher contexts are kept as hidden states: one more than the live teacher's of `full_kl`.
    two_contexts = head(estimator=f"{__name__}:OfDistributions") - head()
    assert two_contexts == 2 * (head(estimator="full_kl") - head() - 4 * _chunk_bytes())


def _chunk_bytes() -> int:
    """fp32 logits of a whole micro-batch of the checkpoint's: less than `logits_mib`."""
    from sdpo_ray.distill.model.model_spec import read_model_spec

    config = learns()
    tokens = config.workers.max_tokens_per_micro_batch
    return min(config.workers.logits_mib * 2**20, 4 * tokens * read_model_spec(CHECKPOINT).vocabulary)


def test_a_signal_that_does_not_exist_is_an_error_with_its_name() -> None:
    for name in ("nowhere.at_all:Signal", f"{__name__}:Missing"):
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            signal_of(learns(estimator=name))


def test_one_that_compares_distributions_is_refused_where_its_teacher_is_sharded() -> None:
    config = DistillConfig.model_validate(
        {
            "lora": {"rank": 0},
            "signal": {"estimator": f"{__name__}:OfDistributions"},
            "workers": {"zero_stage": 3},
        }
    )
    with pytest.raises(ConfigError, match=r"lower workers\.zero_stage, or set lora\.rank"):
        signal_of(config)
