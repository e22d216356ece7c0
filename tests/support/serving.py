"""Applications under test, weights to release to them, and log-probs that are computed without vLLM."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import CaptureConfig
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Event, Feedback, Fingerprint, Release, Turn


@dataclass(frozen=True, slots=True)
class Served:
    """An application, the run that it records to, and the policy that it started with."""

    url: str
    layout: Layout
    base: Path
    overrides: tuple[str, ...]
    """Overrides of the run file with which a job works on the same run."""

    def health(self) -> httpx.Headers:
        return httpx.get(f"{self.url}/health", timeout=30).headers

    def turns(self) -> dict[str, Turn]:
        """Return every turn in the journal, by id."""
        return {event.turn_id: event for event in self.events() if isinstance(event, Turn)}

    def feedback(self) -> dict[str, Feedback]:
        """Return all feedback in the journal, by id."""
        return {event.feedback_id: event for event in self.events() if isinstance(event, Feedback)}

    def events(self) -> tuple[Event, ...]:
        """Every event in the journal, duplicates included."""
        from sdpo_ray.eventlog.factory import open_log

        return open_log(self.layout, CaptureConfig()).poll({}, max_events=1_000_000, max_bytes=1 << 30).events

    def wait_for(self, header: str, value: str, timeout_s: float = 60) -> httpx.Headers:
        """Wait until a health check carries `header: value...`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                headers = self.health()
            except httpx.HTTPError:
                headers = httpx.Headers()
            if headers.get(header, "").startswith(value):
                return headers
            assert time.monotonic() < deadline, f"{header} is {headers.get(header)!r}, not {value!r}"
            time.sleep(0.05)


@contextmanager
def deployed(name: str, overrides: Sequence[str], *, audience: str = "users", route: str = "") -> Iterator[None]:
    """Serve the laptop's run file with `overrides` as the application `name`, at `route` or else at `/name`."""
    from ray import serve

    from serve.app import Arguments, build

    arguments = Arguments.model_validate({"run_file": str(LAPTOP), "overrides": overrides, "audience": audience})
    serve.run(build(arguments), name=name, route_prefix=route or f"/{name}")
    yield
    serve.delete(name)


def perturbed(base: Path, path: Path, *, seed: int, scale: float = 0.02) -> Path:
    """Write a copy of the policy at `base` with Gaussian noise on every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, path)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(path / "model.safetensors")
    noisy = {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noisy, path / "model.safetensors", metadata={"format": "pt"})
    return path


class ReferencePolicy:
    """A policy loaded with transformers: log-probs that are independent of vLLM."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype="float32").eval()

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return log p(token_ids[i + 1] | token_ids[:i + 1])."""
        import torch

        ids = torch.tensor([list(token_ids)])
        with torch.no_grad():
            logp = torch.log_softmax(self._model(ids).logits[0, :-1], dim=-1)
        return logp.gather(1, ids[0, 1:, None])[:, 0].tolist()

    def of_response(self, turn: Turn) -> list[float]:
        return self.logprobs(turn.prompt_ids + turn.response_ids)[len(turn.prompt_ids) - 1 :]


def release_of(path: Path, version: int, *, previous: int | None = BASE_VERSION) -> Release:
    """A release of the policy at `path`, with the fingerprint that transformers computes."""
    token_ids = ChatFormat(path).text_ids(FINGERPRINT_TEXT)
    fingerprint = Fingerprint(token_ids=token_ids, logprobs=tuple(ReferencePolicy(path).logprobs(token_ids)))
    return Release(policy_version=version, path=str(path), previous_version=previous, fingerprint=fingerprint)


def point(layout: Layout, release: Release) -> None:
    """Write the release pointer."""
    write_json(layout.release_pointer, release)
