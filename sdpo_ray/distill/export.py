"""Weights of any ZeRO stage to one directory that vLLM and transformers load, READY last.

Tensors keep the parent's names, so tied embeddings stay tied. They are in fp32, whatever the parent's precision:
the next update goes on from weights that were not rounded, and the engine casts them when it loads.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.errors import LearnerError
from sdpo_ray.records import Candidate, Fingerprint, Refusal, Snapshot, StepMetrics
from sdpo_ray.storage import sealed_directory, write_json

Dtype = Literal["float32", "bfloat16"]
CANDIDATE_FILE = "candidate.json"
_WEIGHTS = "model.safetensors"
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)


def load_policy(path: Path, dtype: Dtype = "float32") -> Any:
    """The causal language model of transformers at `path`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=getattr(torch, dtype))


def gather_weights(model: Any, parent: Path) -> dict[str, Any]:
    """CPU tensors of every name in the parent's checkpoint. Collective: all workers of ZeRO-3 must call it.

    Raises LearnerError where the model lacks a tensor of the parent.
    """
    import deepspeed
    import torch

    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    weights = {}
    for name in _tensor_names(parent):
        if name not in named:
            raise LearnerError(f"{parent} has a tensor {name} that {type(model).__name__} does not")
        tensor = named[name]
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            weights[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    return weights


def export(
    weights: dict[str, Any],
    *,
    out: Path,
    parent: Path,
    policy_version: int,
    parent_version: int,
    snapshot: Snapshot,
    steps: tuple[StepMetrics, ...],
    refusals: tuple[Refusal, ...],
) -> Candidate:
    """Seal `out` with the weights, what the parent has beside its own, and `candidate.json`."""
    from safetensors.torch import save_file

    with sealed_directory(out) as aside:
        save_file(weights, aside / _WEIGHTS, metadata={"format": "pt"})
        for pattern in _COMPANIONS:
            for file in parent.glob(pattern):
                shutil.copy2(file, aside / file.name)
        candidate = Candidate(
            policy_version=policy_version,
            parent_version=parent_version,
            path=str(out),
            snapshot_id=snapshot.snapshot_id,
            fingerprint=fingerprint(aside),
            steps=steps,
            refusals=refusals,
        )
        write_json(aside / CANDIDATE_FILE, candidate)
    return candidate


def fingerprint(path: Path, dtype: Dtype = "float32") -> Fingerprint:
    """Log-probs that transformers gives the fixed text under the policy at `path`, computed in `dtype`."""
    import torch

    token_ids = ChatFormat(path).text_ids(FINGERPRINT_TEXT)
    model = load_policy(path, dtype).eval()
    ids_BS = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs_SV = model(input_ids=ids_BS, use_cache=False).logits[0].float().log_softmax(-1)
    chosen = logprobs_SV[:-1].gather(-1, ids_BS[0, 1:, None])[:, 0]
    return Fingerprint(token_ids=token_ids, logprobs=tuple(chosen.tolist()))


def _tensor_names(path: Path) -> list[str]:
    """Names in all safetensors files of a checkpoint, sorted: alike on every worker."""
    from safetensors import safe_open

    names: list[str] = []
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.extend(tensors.keys())
    if not names:
        raise LearnerError(f"{path} has no safetensors")
    return sorted(names)
