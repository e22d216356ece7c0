"""The Ray Serve deployment that owns one vLLM engine and follows one release pointer.

A replica starts on the release that the pointer names and swaps when the pointer changes, so a late or restarted
replica needs no message, and no replica reads MLflow.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

from ray.serve import get_replica_context

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Run
from sdpo_ray.errors import SwapError
from sdpo_ray.headers import POLICY_VERSION, STALL_S, SWAP_ERROR
from sdpo_ray.records import BASE_VERSION
from sdpo_ray.telemetry import Counters
from sdpo_ray.upstream.ray import replica_is_draining, serve_http_host
from serve.canary.router import CanaryRouter
from serve.engine.vllm_args import api_arguments, engine_arguments
from serve.gateway.health import without_paths
from serve.lifecycle.bind_check import require_keys
from serve.lifecycle.engine_watchdog import exit_process, watch_engine
from serve.lifecycle.graceful_shutdown import drain_on_sigterm
from serve.lifecycle.startup_timer import StartupTimer
from serve.upstream.vllm import forkserver
from serve.upstream.vllm.log_privacy import filter_user_text, keep_handlers_open
from serve.weights.release_watcher import Audience, ReleasePointer, ReleaseWatcher, first_whole, start


class PolicyDeployment:
    """One replica. Audiences `users` and `canary` are recorded; `evaluator` is not, and needs the evaluation's key."""

    # Ray Serve awaits the constructor; vLLM's engine is made on the loop that will run it.
    async def __init__(self, run: dict[str, Any], audience: Audience) -> None:  # type: ignore[misc]
        self._startup = StartupTimer()
        self._run = Run.model_validate(run)
        filter_user_text()
        context = forkserver.start() if self._run.serve.num_gpus == 0 else None
        if audience == "users":
            require_keys(await serve_http_host(), self._run.layout.api_keys)
        from serve import builder
        from serve.engine.recording_engine import RecordingLLM
        from serve.gateway.observability import Observability
        from serve.gateway.policy_metrics import SwapMetrics
        from serve.upstream.vllm.logprobs import install
        from serve.upstream.vllm.tool_calls import ToolCallReader
        from serve.weights.swapper import RequestGate

        if context is not None:
            forkserver.use(context)
        self._startup.mark("imports")
        if audience == "evaluator":
            # It evaluates whole weights, which are the same policy as the adapter over its base.
            whole = self._run.serve.model_copy(update={"swap": "in_place", "adapters": 0})
            self._run = self._run.model_copy(update={"serve": whole})
        pointer = ReleasePointer(self._run.layout, audience)
        known = pointer.to_start_on()
        loaded = first_whole(known) if self._run.serve.swap == "in_place" else None
        arguments = engine_arguments(self._run, loaded.path if loaded else str(self._run.base))
        with keep_handlers_open():
            config = arguments.create_engine_config()
        install()
        self._engine = engine = RecordingLLM.from_vllm_config(config)
        self._startup.mark("engine")
        engine.gate, engine.died = RequestGate(), asyncio.Event()
        engine.recorder = builder.recorder(self._run) if audience != "evaluator" else None
        self._api_arguments = api_arguments(self._run, arguments)
        engine.tool_calls = ToolCallReader(self._run.serve.tool_parser, engine.get_tokenizer(), engine.model_config)
        self._format = ChatFormat(arguments.model)
        await engine.prepare_swaps()
        await engine.label(loaded.policy_version if loaded else BASE_VERSION)
        if not known:
            known = [loaded := await builder.first_release(self._run, pointer, engine, self._format, arguments.model)]
        self._swapper, self._personal = builder.weight_swapper(
            self._run, audience, engine, loaded or known[-1], Path(arguments.model)
        )
        await start(self._swapper, known, loaded=loaded)
        self._release_watcher = ReleaseWatcher(pointer, self._swapper, SwapMetrics().swap)
        self._canary = CanaryRouter(self._run) if audience == "users" else None
        here = get_replica_context()
        self._observability = Observability(self._run.serve, application=here.app_name, replica=here.replica_tag)
        self._authenticator = builder.authenticator(self._run, audience)
        self._publish()
        self._following = asyncio.ensure_future(self._release_watcher.follow())
        self._stopping = False
        self._watchdog = asyncio.ensure_future(
            watch_engine(engine, patience_s=self._run.serve.engine_patience_s, stopping=lambda: self._stopping)
        )
        drain_on_sigterm(exit_process)
        self._startup.mark("policy")

    async def __serve_build_asgi_app__(self) -> Any:
        from serve.api.context import ApiContext
        from serve.api.models import ServedModel
        from serve.api.routes import ApiMiddleware
        from serve.gateway.health import Health
        from serve.gateway.middleware import GatewayMiddleware
        from serve.upstream.vllm.openai_app import openai_app

        app = await openai_app(self._engine, self._api_arguments)
        api = ApiContext(
            recorder=self._engine.recorder,
            capture=self._run.capture,
            control=self._format.control,
            served=self._served,
            model=ServedModel(
                name=self._run.serve.served_name, max_model_len=self._run.policy.max_model_len, since_s=int(time.time())
            ),
            calls_tools=self._run.serve.tool_parser != "none",
            canary=self._canary,
        )
        health = Health(
            check=self.check_health,
            served=self._served,
            recorder=self._engine.recorder,
            queue=lambda: {
                "requests": self._observability.request_metrics.under_way,
                "in_engine": self._engine.get_num_unfinished_requests(),
            },
            draining=replica_is_draining,
        )
        gateway = GatewayMiddleware(ApiMiddleware(app, api), self._authenticator, self._observability, health)
        self._startup.mark("app")
        self._startup.log()
        return gateway

    def reconfigure(self, user_config: dict[str, bool]) -> None:
        """Share the limits where there are several replicas. Ray Serve calls it before traffic and on every change."""
        if user_config["several"]:
            self._observability.share_limits()

    def __del__(self) -> None:
        """Close the event log and the engine. Ray Serve calls it once a stopped replica's last request is over."""
        self._stopping = True
        observability, engine = getattr(self, "_observability", None), getattr(self, "_engine", None)
        if observability is not None:
            observability.close()
        if engine is not None:
            if engine.recorder is not None:
                engine.recorder.close()
            engine.shutdown()

    async def check_health(self) -> None:
        """Raise where this replica must be restarted, which Ray Serve then does."""
        if self._swapper.broken:
            raise SwapError("neither the new nor the old weights check out")
        if self._following.done():
            self._following.result()
        await self._engine.check_health()

    def _served(self) -> dict[str, str]:
        """Headers about the policy that is served now."""
        headers = {
            POLICY_VERSION: str(self._swapper.serving.policy_version),
            STALL_S: f"{self._swapper.stall.total_s:.3f}",
        }
        if self._release_watcher.refused is not None:
            reason = without_paths(self._release_watcher.refused)
            headers[SWAP_ERROR] = reason.encode("ascii", "replace").decode().replace("\n", " ")
        return headers

    def _publish(self) -> None:
        """Add our metrics to this process's page; the evaluation's engine, which records nothing, has vLLM's alone."""
        from serve.gateway.policy_metrics import publish

        if self._engine.recorder is None:
            return
        more: dict[str, Counters] = {**self._observability.counters}
        if self._personal is not None:
            more["sdpo_personal"] = self._personal.counters
        if self._canary is not None:
            more["sdpo_canary_chats"] = self._canary.counters
        capture = self._run.capture
        alarm_bytes = None if capture.kafka.brokers else capture.journal.alarm_mib << 20
        publish(
            self._engine.recorder,
            self._swapper,
            lambda: self._release_watcher.refused is not None,
            alarm_bytes,
            journal=None if alarm_bytes is None else self._run.layout.journal,
            more=more,
        )
