"""Weights of any ZeRO stage to one directory that vLLM and transformers load, READY last.

Tensors keep the parent's names, so tied embeddings stay tied. Where all parameters learned they are in fp32, whatever
the parent's precision: the next update goes on from weights that were not rounded, and the engine casts them when it
loads. With an adapter they are the base's, the adapter added, in the base's precision; the adapter lies beside them.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config.distill import Lora
from sdpo_ray.distill import adapter
from sdpo_ray.distill.gather import TEACHER
from sdpo_ray.distill.load import Dtype, load_policy
from sdpo_ray.errors import LearnerError
from sdpo_ray.records import Candidate, Fingerprint
from sdpo_ray.storage import sealed_directory, write_json

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


def export(
    candidate: Candidate,
    trained: dict[str, Tensor],
    *,
    parent: Path,
    base: Path,
    lora: Lora,
    teacher: dict[str, Tensor] | None,
) -> Candidate:
    """Seal `candidate.path` with weights, tokenizer, adapter, teacher and `candidate.json`; add the fingerprint.

    `trained` and `teacher` have the model's own names. Raises LearnerError where they do not fit the checkpoint.
    """
    from safetensors.torch import save_file

    with sealed_directory(Path(candidate.path)) as aside:
        checkpoint = read_tensors(base)
        weights = adapter.merged(checkpoint, trained, lora) if lora.rank else _renamed(checkpoint, trained, base)
        save_file(weights, aside / _WEIGHTS, metadata={"format": "pt"})
        if lora.rank:
            adapter.save(trained, aside / adapter.ADAPTER, base=base, lora=lora)
        if teacher is not None:
            (aside / TEACHER).parent.mkdir()
            save_file(teacher, aside / TEACHER, metadata={"format": "pt"})
        for pattern in _COMPANIONS:
            for file in parent.glob(pattern):
                shutil.copy2(file, aside / file.name)
        candidate = replace(candidate, fingerprint=fingerprint(aside))
        write_json(aside / CANDIDATE_FILE, candidate)
    return candidate


def fingerprint(path: Path, dtype: Dtype = "float32") -> Fingerprint:
    """Log-probs that transformers gives the fixed text under the policy at `path`, computed in `dtype`."""
    import torch

    token_ids = ChatFormat(path).text_ids(FINGERPRINT_TEXT)
    model = load_policy(path, dtype)
    ids_BS = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs_SV = model(input_ids=ids_BS, use_cache=False).logits[0].float().log_softmax(-1)
    chosen = logprobs_SV[:-1].gather(-1, ids_BS[0, 1:, None])[:, 0]
    return Fingerprint(token_ids=token_ids, logprobs=tuple(chosen.tolist()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint. Raises LearnerError where it has no safetensors."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(path.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
    if not found:
        raise LearnerError(f"{path} has no model.safetensors")
    return found


def _renamed(checkpoint: dict[str, Tensor], trained: dict[str, Tensor], base: Path) -> dict[str, Tensor]:
    """What learned, under the checkpoint's names; a name that is another's twin there is written once more."""
    missing = [name for name in checkpoint if name not in trained]
    if missing:
        raise LearnerError(f"{base} has a tensor {missing[0]} that the model does not learn")
    return {name: trained[name] for name in checkpoint}
