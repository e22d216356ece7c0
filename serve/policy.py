"""The deployment that owns one vLLM engine and follows one release pointer.

A replica starts on what the pointer names, and swaps in place when the pointer changes: a late or restarted
replica needs nobody to tell it. MLflow is not asked.
"""

import asyncio
import logging
import os
import time
from types import SimpleNamespace
from typing import Any, Literal

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config import Run
from sdpo_ray.errors import DataError, SwapError
from sdpo_ray.headers import POLICY_VERSION, STALL_S, SWAP_ERROR
from sdpo_ray.records import Fingerprint, Release
from sdpo_ray.storage import Layout, read_json, write_json
from serve import preload
from serve.arguments import api_arguments, engine_arguments

logger = logging.getLogger("ray.serve")

Audience = Literal["users", "examiner", "canary"]
FOLLOW_S = 0.2
ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
CPU_ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Policy:
    """One replica. `audience` is `users`, who are recorded, or `examiner`, which needs the exam key."""

    # Ray Serve awaits the constructor; vLLM's engine wants the loop that will run it.
    async def __init__(self, run: dict[str, Any], audience: Audience) -> None:  # type: ignore[misc]
        self._run = Run.model_validate(run)
        head_start = preload.start() if self._run.serve.num_gpus == 0 else None
        from serve.engine import RecordingLLM
        from serve.metrics import publish
        from serve.swap import Gate, Swapper

        if head_start is not None:
            preload.use(head_start)
        self._layout = Layout(self._run.directory, self._run.tables)
        self._audience = audience
        self._pointer = self._layout.release_pointer if audience == "users" else self._layout.exam_pointer
        release = read_json(self._pointer, Release) if self._pointer.exists() else None
        arguments = engine_arguments(self._run, release.path if release else str(self._run.base))
        config = arguments.create_engine_config()
        self._engine = RecordingLLM.from_vllm_config(config)
        self._engine.gate = Gate()
        self._engine.recorder = self._recorder() if audience == "users" else None
        self._namespace = api_arguments(self._run, arguments)
        self._format = ChatFormat(arguments.model)
        await self._engine.label(release.policy_version if release else 0)
        release = release or await self._first_release(arguments.model)
        self._swapper = Swapper(self._engine, self._engine.gate, release, dtype=self._run.policy.dtype)
        await self._swapper.verify(release)
        self._swap_error: str | None = None
        if self._engine.recorder is not None:
            capture = self._run.capture
            alarm_bytes = None if capture.kafka.brokers else capture.journal.alarm_mib << 20
            publish(self._engine.recorder, self._swapper, lambda: self._swap_error is not None, alarm_bytes)
        self._follower = asyncio.ensure_future(self._follow())

    async def __serve_build_asgi_app__(self) -> Any:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        from serve.auth import ExaminersEntrance, UsersEntrance, private_key
        from serve.door import Door
        from serve.front import Front
        from serve.routes import Middleware

        tasks = await self._engine.get_supported_tasks()
        app = build_app(self._namespace, tasks, self._engine.model_config)
        await init_app_state(self._engine, app.state, self._namespace, tasks)
        key = private_key(self._layout.exam_key) if self._audience == "examiner" else None
        door = Door(
            recorder=self._engine.recorder,
            capture=self._run.capture,
            control=self._format.control,
            served=self._served,
        )
        # vLLM's handler of a dead engine looks for its own HTTP server here; ours is Ray Serve's.
        app.state.server = SimpleNamespace()
        entrance = UsersEntrance(self._layout.api_keys) if key is None else ExaminersEntrance(key)
        return Front(Middleware(app, door), entrance)

    async def check_health(self) -> None:
        """Ray Serve restarts the replica when this raises."""
        if self._swapper.broken:
            raise SwapError("neither the new nor the old weights check out")
        if self._follower.done():
            self._follower.result()
        await self._engine.check_health()

    async def _first_release(self, path: str) -> Release:
        """The base policy as version 0: an engine that has just loaded it is the best witness there is."""
        token_ids = self._format.text_ids(FINGERPRINT_TEXT)
        logprobs = await self._engine.logprobs(token_ids)
        release = Release(
            policy_version=0,
            path=path,
            previous_version=None,
            fingerprint=Fingerprint(token_ids=token_ids, logprobs=logprobs),
            released_at_s=time.time(),
        )
        write_json(self._layout.release(0), release)
        write_json(self._pointer, release)
        return release

    async def _follow(self) -> None:
        """Serve what the pointer names, within `FOLLOW_S` of its change; a refused release is tried once."""
        seen = 0
        while True:
            await asyncio.sleep(FOLLOW_S)
            changed = os.stat(self._pointer).st_mtime_ns
            if changed == seen:
                continue
            seen = changed
            try:
                release = read_json(self._pointer, Release)
            except DataError as error:
                self._swap_error = str(error)
                continue
            try:
                if release != self._swapper.serving:
                    await self._swapper.to(release)
                self._swap_error = None
            except SwapError as error:
                self._swap_error = f"v{release.policy_version}: {error}"
                logger.error("release refused: %s", error)

    def _served(self) -> dict[str, str]:
        headers = {
            POLICY_VERSION: str(self._swapper.serving.policy_version),
            STALL_S: f"{self._swapper.stall_s:.3f}",
        }
        if self._swap_error is not None:
            headers[SWAP_ERROR] = self._swap_error.encode("ascii", "replace").decode().replace("\n", " ")
        return headers

    def _recorder(self) -> Any:
        from sdpo_ray.capture.log import open_log
        from sdpo_ray.capture.private import Followed
        from sdpo_ray.capture.pseudonyms import Pseudonyms
        from sdpo_ray.capture.recorder import Recorder
        from sdpo_ray.redaction import Redactor

        config = self._run.capture
        redactor = Redactor(config.redact, phone_regions=config.phone_regions, presidio=config.presidio)
        pseudonyms = Followed(self._layout.pseudonym_keys, Pseudonyms.load)
        return Recorder(open_log(self._layout, config), redactor, pseudonyms.now, timeout_s=config.receipt_timeout_s)
