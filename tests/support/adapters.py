"""Candidates with an adapter over a base: merged weights, and the adapter in peft's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config.distill import LoraConfig
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.model.lora_adapter import inject as inject_adapter
from sdpo_ray.distill.train.export import export
from sdpo_ray.io.adapter_config import ADAPTER
from sdpo_ray.io.adapter_config import ADAPTER_CONFIG as CONFIG
from sdpo_ray.io.adapter_config import ADAPTER_WEIGHTS as WEIGHTS
from sdpo_ray.records import BASE_VERSION, Candidate, Fingerprint, PersonalPolicy, Release

LORA = LoraConfig(rank=4, alpha=8)


def adapted(base: Path, path: Path, *, version: int, seed: int, scale: float = 0.05) -> Candidate:
    """A candidate whose adapter is noise of `seed`, exported as `distill` does."""
    import torch

    model: Any = load_policy(base)
    inject_adapter(model, LORA, parent=base, base=base, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    trained = {
        name: each.detach() + scale * torch.randn(each.shape, generator=generator)
        for name, each in model.named_parameters()
        if each.requires_grad
    }
    candidate = Candidate(
        policy_version=version,
        parent_version=BASE_VERSION,
        path=str(path),
        snapshot_id="",
        fingerprint=Fingerprint(token_ids=ChatFormat(base).text_ids(FINGERPRINT_TEXT), logprobs=()),
    )
    return export(candidate, trained, parent=base, base=base, lora=LORA, teacher=None)


def adapter_release(candidate: Candidate) -> Release:
    return Release(
        policy_version=candidate.policy_version,
        path=candidate.path,
        previous_version=BASE_VERSION,
        fingerprint=candidate.fingerprint,
        adapter=f"{candidate.path}/{ADAPTER}",
        digests=candidate.digests,
    )


def personal(candidate: Candidate, owner: str, *, base_version: int = BASE_VERSION, **more: Any) -> PersonalPolicy:
    """The candidate's adapter as the personal policy of `owner`."""
    return PersonalPolicy(
        **{
            "owner": owner,
            "version": 1,
            "name": f"{owner}@p{candidate.policy_version}",
            "adapter": f"{candidate.path}/{ADAPTER}",
            "base_version": base_version,
            "fingerprint": candidate.fingerprint,
            "released_at_s": 0.0,
        }
        | more
    )


def rewrite(folder: Path, change: Any) -> None:
    """Rewrite the adapter in `folder` after applying `change` to the dict of its tensors."""
    from safetensors.torch import load_file, save_file

    tensors: Mapping[str, Any] = load_file(folder / WEIGHTS)
    changed = dict(tensors)
    change(changed)
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})


__all__ = ["ADAPTER", "CONFIG", "LORA", "WEIGHTS", "adapted", "adapter_release", "personal", "rewrite"]
