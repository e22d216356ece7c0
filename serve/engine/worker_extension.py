"""Runs inside vLLM's workers: reads new weights into memory, and then puts them into the model.

vLLM's `reload_weights` leaves layers empty when a file turns out torn half-way, so everything is read and checked
before the model is touched. A thread reads: the engine goes on generating meanwhile.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from sdpo_ray.records import FileDigest
from serve.upstream.vllm.cpu_lm_head import repack_tied_heads
from serve.upstream.vllm.sampler import use_lean_sampler
from serve.weights import checkpoint_io

if current_platform.is_cpu():
    # vLLM makes its model after it has imported this extension, with the layers that are registered by then.
    import serve.upstream.vllm.cpu_norms  # noqa: F401


class SwapExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`; `collective_rpc` calls its methods."""

    device: Any
    model_runner: Any
    reload_weights: Any
    _known: dict[str, checkpoint_io.TensorSpec]
    _staged: "Future[dict[str, Any]]"

    def prepare_swaps(self) -> None:
        """Remember the architecture, whose files may be gone later, and replace what vLLM does wrong or slowly."""
        self._known = checkpoint_io.headers(Path(self.model_runner.model_config.model))
        use_lean_sampler(self.model_runner)
        if self.device.type == "cpu" and self.model_runner.lora_config is not None:
            from serve.upstream.vllm.cpu_lora import use_exact_products

            use_exact_products(self.model_runner.lora_manager)

    def stage_weights(self, path: str, digests: Sequence[tuple[str, str]]) -> None:
        """Begin to read `path` into memory. `digests` are file names with their sha256."""
        expected = [FileDigest(name=name, sha256=sha256) for name, sha256 in digests]
        reader = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._staged = reader.submit(self._read, Path(path), expected)
        reader.shutdown(wait=False)

    def weights_staged(self) -> bool:
        """Return whether reading is done. Raises DataError naming what is wrong with the files."""
        if not self._staged.done():
            return False
        self._staged.result()
        return True

    def load_staged(self) -> None:
        """Put the staged tensors into the model, in place."""
        staged = self._staged.result()
        del self._staged
        self.reload_weights(weights_iterator=iter(staged.items()))
        if self.device.type == "cpu":
            repack_tied_heads(self.model_runner.get_model())

    def _read(self, path: Path, digests: list[FileDigest]) -> dict[str, Any]:
        checkpoint_io.require_same(checkpoint_io.headers(path), self._known)
        return checkpoint_io.read(path, digests)
