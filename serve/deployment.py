"""The deployment that owns one vLLM engine and follows one release pointer.

A replica starts on what the pointer names, and swaps when the pointer changes: a late or restarted replica needs
nobody to tell it. MLflow is not asked.
"""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.serve import get_replica_context

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Run
from sdpo_ray.errors import SwapError
from sdpo_ray.headers import POLICY_VERSION, STALL_S, SWAP_ERROR
from sdpo_ray.records import BASE_VERSION
from sdpo_ray.telemetry import Counters
from serve.canary.router import CanaryRouter
from serve.engine.vllm_args import api_arguments, engine_arguments
from serve.gateway.health import without_paths
from serve.lifecycle import forkserver
from serve.lifecycle.engine_watchdog import exit_process, watch_engine
from serve.lifecycle.graceful_shutdown import drain_on_sigterm, draining
from serve.lifecycle.log_privacy import kept_open, withhold_words
from serve.lifecycle.startup_timer import StartupTimer
from serve.weights.release_watcher import Audience, ReleasePointer, ReleaseWatcher, first_whole, start


class PolicyDeployment:
    """One replica. `audience` is `users` or `canary`, who are recorded, or `evaluator`, which needs the exam key."""

    # Ray Serve awaits the constructor; vLLM's engine wants the loop that will run it.
    async def __init__(self, run: dict[str, Any], audience: Audience) -> None:  # type: ignore[misc]
        self._start_up = StartupTimer()
        self._run = Run.model_validate(run)
        withhold_words()
        head_start = forkserver.start() if self._run.serve.num_gpus == 0 else None
        if audience == "users":
            from serve.lifecycle.bind_check import bound_host, require_keys

            require_keys(await bound_host(), self._run.layout.api_keys)
        from serve import builder
        from serve.engine.logprobs import install
        from serve.engine.recording_engine import RecordingLLM
        from serve.engine.tool_calls import ToolCallReader
        from serve.gateway.observability import Observability
        from serve.gateway.policy_metrics import SwapMetrics
        from serve.weights.swapper import RequestGate

        if head_start is not None:
            forkserver.use(head_start)
        self._start_up.passed("imports")
        if audience == "evaluator":
            # It evaluates whole weights, which are the same policy as the adapter over its base.
            whole = self._run.serve.model_copy(update={"swap": "in_place", "adapters": 0})
            self._run = self._run.model_copy(update={"serve": whole})
        self._layout = layout = self._run.layout
        pointer = ReleasePointer(layout, audience)
        known = pointer.to_start_on()
        loaded = first_whole(known) if self._run.serve.swap == "in_place" else None
        arguments = engine_arguments(self._run, loaded.path if loaded else str(self._run.base))
        with kept_open():
            config = arguments.create_engine_config()
        install()
        self._engine = engine = RecordingLLM.from_vllm_config(config)
        await engine.collective_rpc("rank_nothing")
        self._start_up.passed("engine")
        engine.gate, engine.died = RequestGate(), asyncio.Event()
        engine.recorder = builder.recorder(self._run, layout) if audience != "evaluator" else None
        self._namespace = api_arguments(self._run, arguments)
        engine.tool_calls = ToolCallReader(self._run.serve.tool_parser, engine.get_tokenizer(), engine.model_config)
        self._format = ChatFormat(arguments.model)
        await engine.prepare_swaps()
        await engine.label(loaded.policy_version if loaded else BASE_VERSION)
        if not known:
            known = [loaded := await builder.first_release(layout, pointer, engine, self._format, arguments.model)]
        self._swapper, self._personal = builder.weight_swapper(
            self._run, layout, audience, engine, loaded or known[-1], Path(arguments.model)
        )
        await start(self._swapper, known, loaded=loaded)
        self._following = ReleaseWatcher(pointer, self._swapper, SwapMetrics().swap)
        self._canary = CanaryRouter(self._run, layout) if audience == "users" else None
        here = get_replica_context()
        self._operation = Observability(self._run.serve, application=here.app_name, replica=here.replica_tag)
        self._entrance = builder.authenticator(self._run, layout, audience)
        self._publish()
        self._follower = asyncio.ensure_future(self._following.follow())
        self._leaving = False
        patience_s = self._run.serve.engine_patience_s
        self._lifeline = asyncio.ensure_future(
            watch_engine(engine, patience_s=patience_s, leaving=lambda: self._leaving)
        )
        drain_on_sigterm(exit_process)
        self._start_up.passed("policy")

    async def __serve_build_asgi_app__(self) -> Any:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        from serve.api.context import ApiContext
        from serve.api.models import ServedModel
        from serve.api.routes import ApiMiddleware
        from serve.api.vllm_app import VllmApp
        from serve.gateway.health import Health
        from serve.gateway.middleware import GatewayMiddleware

        tasks = await self._engine.get_supported_tasks()
        app = build_app(self._namespace, tasks, self._engine.model_config)
        await init_app_state(self._engine, app.state, self._namespace, tasks)
        door = ApiContext(
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
        # vLLM's handler of a dead engine looks for its own HTTP server here; ours is Ray Serve's.
        app.state.server = SimpleNamespace()
        health = Health(
            check=self.check_health,
            served=self._served,
            recorder=self._engine.recorder,
            queue=lambda: {
                "requests": self._operation.traffic.under_way,
                "in_engine": self._engine.get_num_unfinished_requests(),
            },
            draining=draining,
        )
        front = GatewayMiddleware(ApiMiddleware(VllmApp(app), door), self._entrance, self._operation, health)
        self._start_up.passed("app")
        self._start_up.log()
        return front

    def reconfigure(self, user_config: dict[str, bool]) -> None:
        """Ray Serve calls it before traffic, and when the number of replicas changes while they serve."""
        if user_config["several"]:
            self._operation.share_limits()

    def __del__(self) -> None:
        """Ray Serve calls this once the last request of a replica that is stopped is over."""
        self._leaving = True
        operation, engine = getattr(self, "_operation", None), getattr(self, "_engine", None)
        if operation is not None:
            operation.close()
        if engine is not None:
            if engine.recorder is not None:
                engine.recorder.close()
            engine.shutdown()

    async def check_health(self) -> None:
        """Ray Serve restarts the replica when this raises."""
        if self._swapper.broken:
            raise SwapError("neither the new nor the old weights check out")
        if self._follower.done():
            self._follower.result()
        await self._engine.check_health()

    def _served(self) -> dict[str, str]:
        """Headers that tell what is served now."""
        headers = {
            POLICY_VERSION: str(self._swapper.serving.policy_version),
            STALL_S: f"{self._swapper.stall_s:.3f}",
        }
        if self._following.refused is not None:
            words = without_paths(self._following.refused)
            headers[SWAP_ERROR] = words.encode("ascii", "replace").decode().replace("\n", " ")
        return headers

    def _publish(self) -> None:
        """Our numbers on the page of this process; the evaluation's engine, which records nobody, has vLLM's alone."""
        from serve.gateway.policy_metrics import publish

        if self._engine.recorder is None:
            return
        more: dict[str, Counters] = {**self._operation.counters}
        if self._personal is not None:
            more["sdpo_personal"] = self._personal.counters
        if self._canary is not None:
            more["sdpo_canary_chats"] = self._canary.counters
        capture = self._run.capture
        alarm_bytes = None if capture.kafka.brokers else capture.journal.alarm_mib << 20
        publish(
            self._engine.recorder,
            self._swapper,
            lambda: self._following.refused is not None,
            alarm_bytes,
            journal=None if alarm_bytes is None else self._layout.journal,
            more=more,
        )
