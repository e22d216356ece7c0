"""The function that Ray Train runs on each worker."""

import os

from sdpo_ray.distill.train.update_spec import UpdateSpec
from sdpo_ray.errors import SdpoError
from sdpo_ray.io.files import is_ready


def train(spec: UpdateSpec) -> str | None:
    """Run the update. Returns the reason where there is no candidate, None otherwise.

    The reason is returned, not raised, because Ray Train would retry, and the update would fail again.
    """
    try:
        _train(spec)
    except SdpoError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _train(spec: UpdateSpec) -> None:
    import ray.train

    if is_ready(spec.out):
        # An earlier attempt was lost after it had sealed the candidate.
        return
    if not spec.config.workers.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed picks its accelerator when it is imported.
    from sdpo_ray.distill.train.train_loop import TrainLoop

    context = ray.train.get_context()
    TrainLoop(spec, rank=context.get_world_rank(), num_workers=context.get_world_size()).run()
