"""Write a candidate's directory: weights that vLLM and transformers load, adapter, teacher and records, READY last.

Tensors keep the parent's names, so tied embeddings stay tied. Where all parameters were trained they are in fp32,
whatever the parent's precision: the next update starts from weights that were not rounded, and the engine casts them
when it loads. With an adapter they are the base's plus the adapter, in the base's precision, and the adapter is saved
beside them.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config.distill import LoraConfig
from sdpo_ray.distill.attribution.relevance import RELEVANCE_FILE
from sdpo_ray.distill.model import lora_adapter
from sdpo_ray.distill.model.load import Dtype, load_policy
from sdpo_ray.distill.train.update_spec import CANDIDATE_FILE, GAINS_FILE
from sdpo_ray.distill.train.zero_gather import TEACHER
from sdpo_ray.errors import LearnerError
from sdpo_ray.io.adapter_config import ADAPTER, ADAPTER_WEIGHTS
from sdpo_ray.io.files import sealed_directory, write_json
from sdpo_ray.records import Candidate, FileDigest, Fingerprint, Gain, Relevance

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
    lora: LoraConfig,
    teacher: dict[str, Tensor] | None,
    relevance: Sequence[Relevance] = (),
    gains: Sequence[Gain] = (),
) -> Candidate:
    """Write and seal `candidate.path`; returns the candidate with its fingerprint and file digests.

    `trained` and `teacher` are keyed by the model's parameter names. Raises LearnerError where they do not fit the
    checkpoint at `base`.
    """
    from safetensors.torch import save_file

    with sealed_directory(Path(candidate.path)) as aside:
        weights = lora_adapter.merged(read_tensors(base), trained, lora) if lora.rank else _renamed(trained, base)
        save_file(weights, aside / _WEIGHTS, metadata={"format": "pt"})
        if lora.rank:
            lora_adapter.save(trained, aside / ADAPTER, base=base, lora=lora)
        if teacher is not None:
            (aside / TEACHER).parent.mkdir()
            save_file(teacher, aside / TEACHER, metadata={"format": "pt"})
        for pattern in _COMPANIONS:
            for file in parent.glob(pattern):
                shutil.copy2(file, aside / file.name)
        candidate = replace(candidate, fingerprint=fingerprint(aside), digests=_digests(aside))
        if relevance:
            write_json(aside / RELEVANCE_FILE, relevance)
        if gains:
            write_json(aside / GAINS_FILE, gains)
        write_json(aside / CANDIDATE_FILE, candidate)
    return candidate


def fingerprint(path: Path, dtype: Dtype = "float32") -> Fingerprint:
    """transformers' log-probs of `FINGERPRINT_TEXT` under the policy at `path`, computed in `dtype`."""
    import torch

    token_ids = ChatFormat(path).text_ids(FINGERPRINT_TEXT)
    model = load_policy(path, dtype)
    ids_BS = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs_SV = model(input_ids=ids_BS, use_cache=False).logits[0].float().log_softmax(-1)
    chosen = logprobs_SV[:-1].gather(-1, ids_BS[0, 1:, None])[:, 0]
    return Fingerprint(token_ids=token_ids, logprobs=tuple(chosen.tolist()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by name. Raises LearnerError where it has no safetensors."""
    from safetensors.torch import load_file

    return {name: tensor for file in _files(path) for name, tensor in load_file(file).items()}


def _digests(path: Path) -> tuple[FileDigest, ...]:
    """Digests of the weights, and of the adapter where there is one."""
    found = []
    for name in (_WEIGHTS, f"{ADAPTER}/{ADAPTER_WEIGHTS}"):
        if (path / name).exists():
            with (path / name).open("rb") as file:
                found.append(FileDigest(name=name, sha256=hashlib.file_digest(file, "sha256").hexdigest()))
    return tuple(found)


def _renamed(trained: dict[str, Tensor], base: Path) -> dict[str, Tensor]:
    """The trained tensors under the names in the checkpoint at `base`, tied ones as often as it has them."""
    from safetensors import safe_open

    names: list[str] = []
    for file in _files(base):
        with safe_open(file, "pt") as tensors:
            names.extend(tensors.keys())
    if missing := [name for name in names if name not in trained]:
        raise LearnerError(f"{base} has a tensor {missing[0]} that the model does not train")
    return {name: trained[name] for name in names}


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise LearnerError(f"{path} has no model.safetensors")
    return files
