"""What a learning signal declares to packing, step and memory estimate, and the loss it computes."""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from sdpo_ray.distill.data.contexts import ContextBuilder
from sdpo_ray.distill.model.lm_head import Gradient

if TYPE_CHECKING:
    from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss


class Signal(Protocol):
    """A learning signal, constructed from a `DistillConfig`. Made by `registry.signal_of`."""

    @property
    def contexts(self) -> tuple[ContextBuilder, ...]:
        """Contexts besides x that are built for every interaction."""

    @property
    def compares_distributions(self) -> bool:
        """Whether the teacher's hidden states are kept, for whole distributions; else its log-probs of y alone."""

    @property
    def num_chunk_tensors(self) -> int:
        """Tensors as large as one chunk's logits that exist at a time in `gradient`; for the memory estimate."""

    def teacher_contexts(self, *, scores_prompt: bool) -> tuple[str, ...]:
        """Names of the contexts that the teacher scores, one forward pass each; empty where there is no teacher.

        `scores_prompt`: the teacher is another policy than the student and `teacher.baselined` asks for its own score
        of x.
        """

    def gradient(self, student: "SDPOLoss", hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
        """A function from one chunk's logits to that chunk's part of the loss and its gradient of the logits.

        Called once a micro-batch with the student's hidden states at the N scored tokens and its output weights. The
        function records what it sees on `student`.
        """
