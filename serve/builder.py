"""Builds the parts of one replica that its run file and audience choose. Import it only once vLLM may be imported."""

import time
from pathlib import Path

from ray import get_runtime_context
from ray.serve import get_replica_context

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config import Run
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.files import write_json
from sdpo_ray.io.watched_file import WatchedFile
from sdpo_ray.records import BASE_VERSION, Fingerprint, Release
from sdpo_ray.redaction import Redactor
from sdpo_ray.upstream.haproxy import HAProxyClient
from serve.engine.recording_engine import RecordingLLM
from serve.gateway.auth import (
    Authenticator,
    CanaryAuthenticator,
    EvaluatorAuthenticator,
    UserAuthenticator,
    private_key,
)
from serve.lora.lora_cache import LoRACache
from serve.lora.lora_swapper import LoRASwapper
from serve.lora.personal_policies import PersonalPolicies
from serve.weights import checkpoint_io
from serve.weights.release_watcher import Audience, ReleasePointer, WeightSwapper
from serve.weights.rolling_update import RollingUpdate
from serve.weights.swapper import Swapper


def authenticator(run: Run, audience: Audience) -> Authenticator:
    """Return what decides who may call this audience's replicas."""
    match audience:
        case "users":
            return UserAuthenticator(run.layout.api_keys, run.serve.limits)
        case "evaluator":
            return EvaluatorAuthenticator(private_key(run.layout.eval_key))
        case "canary":
            return CanaryAuthenticator(private_key(run.layout.canary_key))


def recorder(run: Run) -> Recorder:
    """Return what writes turns and feedback to the run's event log."""
    capture = run.capture
    redactor = Redactor(capture.redact, phone_regions=capture.phone_regions, presidio=capture.presidio)
    pseudonyms = WatchedFile(run.layout.pseudonym_keys, Pseudonyms.load)
    return Recorder(open_log(run.layout, capture), redactor, pseudonyms.now, timeout_s=capture.receipt_timeout_s)


def weight_swapper(
    run: Run, audience: Audience, engine: RecordingLLM, serving: Release, model: Path
) -> tuple[WeightSwapper, PersonalPolicies | None]:
    """Return what puts releases into this engine, and its personal policies where the run has any.

    `serving` is the release that the engine holds now, `model` the directory of its weights.
    """
    config, dtype = run.serve, run.policy.dtype
    lora_cache = LoRACache(
        engine, checkpoint_io.headers(model), slots=config.adapters, max_rank=config.max_lora_rank, dtype=dtype
    )
    if config.swap == "adapter":
        engine.adapters = lora_swapper = LoRASwapper(engine, lora_cache, serving, base=model, dtype=dtype)
        return lora_swapper, None
    haproxy = HAProxyClient.here(get_replica_context().replica_id.unique_id, get_runtime_context().get_node_id())
    rolling = RollingUpdate(run.layout.root / f".rolling-{audience}.lock", haproxy)
    swapper = Swapper(engine, engine.gate, serving, dtype=dtype, slot=rolling.slot)
    if not config.adapters:
        return swapper, None
    pseudonyms = WatchedFile(run.layout.pseudonym_keys, Pseudonyms.load)
    personal = PersonalPolicies(run.layout, pseudonyms.now, lora_cache, lambda: swapper.serving.policy_version)
    engine.adapters, engine.on_load = personal, lora_cache.clear
    return swapper, personal


async def first_release(
    run: Run, pointer: ReleasePointer, engine: RecordingLLM, chat: ChatFormat, path: str
) -> Release:
    """Write and return the release of the base policy at `path`, with the fingerprint of the engine that loaded it."""
    token_ids = chat.text_ids(FINGERPRINT_TEXT)
    release = Release(
        policy_version=BASE_VERSION,
        path=path,
        previous_version=None,
        fingerprint=Fingerprint(token_ids=token_ids, logprobs=await engine.logprobs(token_ids)),
        released_at_s=time.time(),
    )
    write_json(run.layout.release(BASE_VERSION), release)
    # Another replica may have written it before, and the pointer may name a later release since.
    if not pointer.path.exists():
        write_json(pointer.path, release)
    return release
