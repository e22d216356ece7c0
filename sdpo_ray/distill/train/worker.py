"""What Ray Train runs on each worker."""

import os

from sdpo_ray.distill.train.update_spec import UpdateSpec
from sdpo_ray.errors import SdpoError
from sdpo_ray.io.files import is_ready


def train(job: UpdateSpec) -> str | None:
    """What Ray Train runs. Returns why there is no candidate: a refused update would be refused again."""
    try:
        _train(job)
    except SdpoError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _train(job: UpdateSpec) -> None:
    import ray.train

    if is_ready(job.out):
        # An earlier attempt of this run was lost after it had sealed the candidate.
        return
    if not job.config.workers.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed picks its accelerator when it is imported.
    from sdpo_ray.distill.train.train_loop import TrainLoop

    context = ray.train.get_context()
    TrainLoop(job, rank=context.get_world_rank(), num_workers=context.get_world_size()).go()
