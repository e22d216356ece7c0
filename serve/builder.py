"""The parts of one replica that its run file and its audience choose. Import it when vLLM may be imported."""

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
from sdpo_ray.io.paths import Layout
from sdpo_ray.io.watched_file import WatchedFile
from sdpo_ray.records import BASE_VERSION, Fingerprint, Release
from sdpo_ray.redaction import Redactor
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
from serve.weights.rolling_update import HAProxyClient, RollingUpdate
from serve.weights.swapper import Swapper


def authenticator(run: Run, layout: Layout, audience: Audience) -> Authenticator:
    """Who may call."""
    match audience:
        case "users":
            return UserAuthenticator(layout.api_keys, run.serve.limits)
        case "evaluator":
            return EvaluatorAuthenticator(private_key(layout.eval_key))
        case "canary":
            return CanaryAuthenticator(private_key(layout.canary_key))


def recorder(run: Run, layout: Layout) -> Recorder:
    """Who writes turns and feedback to the run's event log."""
    capture = run.capture
    redactor = Redactor(capture.redact, phone_regions=capture.phone_regions, presidio=capture.presidio)
    pseudonyms = WatchedFile(layout.pseudonym_keys, Pseudonyms.load)
    return Recorder(open_log(layout, capture), redactor, pseudonyms.now, timeout_s=capture.receipt_timeout_s)


def weight_swapper(
    run: Run, layout: Layout, audience: Audience, engine: RecordingLLM, serving: Release, model: Path
) -> tuple[WeightSwapper, PersonalPolicies | None]:
    """How releases reach this engine, and who in it has a policy of their own, if anybody can.

    `serving` is what the engine answers with now, `model` the directory of its weights.
    """
    config, dtype = run.serve, run.policy.dtype
    book = LoRACache(
        engine, checkpoint_io.headers(model), slots=config.adapters, max_rank=config.max_lora_rank, dtype=dtype
    )
    if config.swap == "adapter":
        engine.adapters = by_adapter = LoRASwapper(engine, book, serving, base=model, dtype=dtype)
        return by_adapter, None
    balance = HAProxyClient.here(get_replica_context().replica_id.unique_id, get_runtime_context().get_node_id())
    rolling = RollingUpdate(layout.root / f".rolling-{audience}.lock", balance)
    in_place = Swapper(engine, engine.gate, serving, dtype=dtype, turn=rolling.turn)
    if not config.adapters:
        return in_place, None
    pseudonyms = WatchedFile(layout.pseudonym_keys, Pseudonyms.load)
    personal = PersonalPolicies(layout, pseudonyms.now, book, lambda: in_place.serving.policy_version)
    engine.adapters, engine.on_load = personal, book.forget
    return in_place, personal


async def first_release(
    layout: Layout, pointer: ReleasePointer, engine: RecordingLLM, chat: ChatFormat, path: str
) -> Release:
    """The base policy at `path` as version 0: an engine that has just loaded it is the best witness there is."""
    token_ids = chat.text_ids(FINGERPRINT_TEXT)
    release = Release(
        policy_version=BASE_VERSION,
        path=path,
        previous_version=None,
        fingerprint=Fingerprint(token_ids=token_ids, logprobs=await engine.logprobs(token_ids)),
        released_at_s=time.time(),
    )
    write_json(layout.release(BASE_VERSION), release)
    # Another replica may have been first, and may have been told of a release since.
    if not pointer.path.exists():
        write_json(pointer.path, release)
    return release
