"""Candidates on disk, and the parts of a worker that run without a cluster."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.config.distill import LoraConfig
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.distill.train.export import export, fingerprint
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.distill.train.train_loop import TrainLoop
from sdpo_ray.distill.train.update_spec import UpdateSpec, num_steps
from sdpo_ray.distill.train.worker import train
from sdpo_ray.errors import DataError, LearnerError, NotReady
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.records import BASE_VERSION, Candidate, Fingerprint, RefusalCount, Snapshot
from tests.support.builders import interaction, release, snapshot, tiny_policy, with_turn


@pytest.fixture
def drawn(tmp_path: Path) -> Snapshot:
    policy = tiny_policy(tmp_path / "base")
    return snapshot(tmp_path / "s0", [interaction(ChatFormat(policy))])


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_keeps_the_parent_s_names_and_loads_as_the_weights_that_were_given(
    tmp_path: Path, tied: bool
) -> None:
    parent = tiny_policy(tmp_path / "parent", tied=tied)
    drawn = snapshot(tmp_path / "s0", [interaction(ChatFormat(parent))])
    model = load_policy(parent)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    candidate = _export(_parameters(model), parent, tmp_path / "v0001", drawn)

    written = load_file(tmp_path / "v0001" / "model.safetensors")
    assert written.keys() == load_file(parent / "model.safetensors").keys()
    assert ("lm_head.weight" in written) is not tied
    loaded = load_policy(tmp_path / "v0001")
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for companion in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "v0001" / companion).read_bytes() == (parent / companion).read_bytes()
    assert is_ready(tmp_path / "v0001")
    assert read_json(tmp_path / "v0001" / "candidate.json", Candidate) == candidate
    assert candidate.path == str(tmp_path / "v0001")


def test_a_fingerprint_is_the_log_probs_of_the_fixed_text(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path)
    found = fingerprint(policy)
    assert found.token_ids == ChatFormat(policy).text_ids(FINGERPRINT_TEXT)
    assert len(found.logprobs) == len(found.token_ids) - 1
    model = load_policy(policy).eval()
    with torch.no_grad():
        # The last token's log-prob, computed from its prefix only.
        last = model(input_ids=torch.tensor([found.token_ids[:-1]])).logits[0, -1].log_softmax(-1)
    assert found.logprobs[-1] == pytest.approx(last[found.token_ids[-1]].item(), abs=1e-5)
    assert fingerprint(policy, "bfloat16").logprobs != found.logprobs
    assert fingerprint(tiny_policy(tmp_path / "other", seed=1)).logprobs != found.logprobs


def test_a_sharded_bf16_parent_becomes_one_fp32_file_without_an_index(tmp_path: Path) -> None:
    parent = tiny_policy(tmp_path / "parent")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(parent / "model.safetensors").items()}
    names = sorted(tensors)
    (parent / "model.safetensors").unlink()
    for part, chosen in enumerate((names[:5], names[5:])):
        save_file({name: tensors[name] for name in chosen}, parent / f"model-{part}.safetensors")
    drawn = snapshot(tmp_path / "s0", [interaction(ChatFormat(parent))])
    (parent / "model.safetensors.index.json").write_text("{}")
    source = load_policy(tiny_policy(tmp_path / "source"))
    _export(_parameters(source), parent, tmp_path / "v0001", drawn)
    written = load_file(tmp_path / "v0001" / "model.safetensors")
    assert sorted(written) == names
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert not (tmp_path / "v0001" / "model.safetensors.index.json").exists()


def test_a_parent_with_tensors_the_model_lacks_is_refused(tmp_path: Path) -> None:
    parent = tiny_policy(tmp_path)
    trained = _parameters(load_policy(parent))
    drawn = snapshot(tmp_path / "s0", [interaction(ChatFormat(parent))])
    save_file({"model.extra": torch.zeros(1)}, parent / "model-extra.safetensors")
    with pytest.raises(LearnerError, match=r"model\.extra"):
        _export(trained, parent, tmp_path / "v0001", drawn)
    assert not (tmp_path / "v0001").exists()


def test_a_candidate_of_the_same_update_is_returned_and_of_another_is_refused(drawn: Snapshot, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "v0001"
    candidate = _export(_parameters(load_policy(base)), base, out, drawn)
    arguments: dict[str, Any] = {
        "policy_version": 2,
        "out": out,
        "config": DistillConfig(),
        "max_model_len": 512,
        "seed": 0,
        "base": base,
    }
    assert distill(snapshot=drawn, parent=release(base), **arguments) == candidate
    other = snapshot(tmp_path / "s1", [interaction(ChatFormat(base))], name="s1")
    with pytest.raises(LearnerError, match="already holds an update of version 1 by s0, not of version 1 by s1"):
        distill(snapshot=other, parent=release(base), **arguments)
    with pytest.raises(LearnerError, match="not of version 3 by s0"):
        distill(snapshot=drawn, parent=release(base, policy_version=3), **arguments)


def test_an_update_without_trainable_interactions_names_the_reasons(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path / "base")
    stale = with_turn(interaction(ChatFormat(policy)), prompt_ids=(1, 2))
    with pytest.raises(LearnerError, match=r"no interaction of s0 is trainable: {'prompt_mismatch': 1}"):
        TrainLoop(_job(tmp_path, snapshot(tmp_path / "s0", [stale])), rank=0, num_workers=1)


def test_an_update_refuses_a_snapshot_that_is_incomplete_or_holds_other_interactions(
    drawn: Snapshot, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="does not hold the interactions of s0"):
        TrainLoop(_job(tmp_path, replace(drawn, interaction_ids=("t1",))), rank=0, num_workers=1)
    (Path(drawn.path) / "READY").unlink()
    with pytest.raises(NotReady):
        TrainLoop(_job(tmp_path, drawn), rank=0, num_workers=1)


def test_an_adapter_is_merged_into_the_weights_and_saved_beside_them(tmp_path: Path) -> None:
    parent = tiny_policy(tmp_path / "parent")
    drawn = snapshot(tmp_path / "s0", [interaction(ChatFormat(parent))])
    name = "model.layers.0.mlp.down_proj"
    down, up = torch.randn(2, 64), torch.randn(32, 2)
    trained = {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
    candidate = _export(trained, parent, tmp_path / "v0001", drawn, lora=LoraConfig(rank=2, alpha=6))
    before, after = (load_file(path / "model.safetensors") for path in (parent, tmp_path / "v0001"))
    torch.testing.assert_close(after.pop(f"{name}.weight"), before.pop(f"{name}.weight") + 3 * up @ down)
    assert all(torch.equal(after[other], before[other]) for other in before)
    saved = load_file(tmp_path / "v0001" / "adapter" / "adapter_model.safetensors")
    assert set(saved) == {f"base_model.model.{name}.lora_{part}.weight" for part in "AB"}
    assert {each.name: each.sha256 for each in candidate.digests} == {
        file: hashlib.sha256((tmp_path / "v0001" / file).read_bytes()).hexdigest()
        for file in ("model.safetensors", "adapter/adapter_model.safetensors")
    }


def test_an_attempt_after_the_candidate_was_sealed_does_nothing(drawn: Snapshot, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "v0001"
    _export(_parameters(load_policy(base)), base, out, drawn)
    shutil.rmtree(drawn.path)
    assert train(_job(tmp_path, drawn)) is None


def test_an_engine_that_loads_every_file_it_finds_does_not_find_the_teacher(drawn: Snapshot, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "v0001"
    trained = _parameters(load_policy(base))
    teacher = {name: tensor + 1 for name, tensor in trained.items()}
    _export(trained, base, out, drawn, teacher=teacher)
    assert [file.name for file in out.glob("*.safetensors")] == ["model.safetensors"]
    kept = load_file(out / "teacher" / "weights.safetensors")
    assert all(torch.equal(kept[name], teacher[name]) for name in teacher)


def test_steps_are_counted_with_a_short_last_batch() -> None:
    assert num_steps(33, DistillConfig(batch_size=16, epochs=2)) == 6


def _job(root: Path, drawn: Snapshot) -> UpdateSpec:
    return UpdateSpec(
        snapshot=drawn,
        parent=release(root / "base"),
        policy_version=2,
        out=root / "v0001",
        config=DistillConfig(),
        max_model_len=512,
        seed=0,
        base=root / "base",
        scratch=root / "scratch",
    )


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters(remove_duplicate=False)}


def _export(
    trained: dict[str, torch.Tensor],
    parent: Path,
    out: Path,
    drawn: Snapshot,
    *,
    lora: LoraConfig | None = None,
    teacher: dict[str, torch.Tensor] | None = None,
) -> Candidate:
    candidate = Candidate(
        policy_version=2,
        parent_version=BASE_VERSION,
        path=str(out),
        snapshot_id=drawn.snapshot_id,
        fingerprint=Fingerprint(token_ids=(), logprobs=()),
        refusals=(RefusalCount(reason="too_long", n=1),),
    )
    return export(candidate, trained, parent=parent, base=parent, lora=lora or LoraConfig(rank=0), teacher=teacher)
