"""Runs inside vLLM's worker: read new weights first, put them into the model second.

vLLM's `reload_weights` leaves layers empty when a file turns out torn half-way, so everything is read and checked
before the model is touched. Reading has a thread of its own: the engine goes on making tokens meanwhile.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from sdpo_ray.records import FileDigest
from serve.weights import checkpoint_io

if current_platform.is_cpu():
    # vLLM makes its model after it has imported this extension, with what is registered by then.
    import serve.engine.norms  # noqa: F401


class SwapExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`; methods are called by `collective_rpc`."""

    device: Any
    model_runner: Any
    reload_weights: Any
    _known: dict[str, checkpoint_io.TensorSpec]
    _staged: "Future[dict[str, Any]]"

    def prepare_swaps(self) -> None:
        """Remember the architecture, which the engine's own files need not be there to tell later."""
        self._known = checkpoint_io.headers(Path(self.model_runner.model_config.model))
        if self.device.type == "cpu" and self.model_runner.lora_config is not None:
            from serve.lora.cpu_lora import use_exact_products

            use_exact_products(self.model_runner.lora_manager)

    def rank_nothing(self) -> None:
        """Sample without ranks that nobody reads."""
        from serve.engine.sampler import LeanSampler

        sampler = self.model_runner.sampler
        self.model_runner.sampler = LeanSampler(sampler.logprobs_mode, sampler.use_fp64_gumbel)

    def stage_weights(self, path: str, digests: Sequence[tuple[str, str]]) -> None:
        """Begin to read `path` into memory. `digests` are names of files with their sha256."""
        expected = [FileDigest(name=name, sha256=sha256) for name, sha256 in digests]
        reader = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._staged = reader.submit(self._read, Path(path), expected)
        reader.shutdown(wait=False)

    def weights_staged(self) -> bool:
        """Whether reading is done. Raises what was wrong with the files."""
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
            self._prepack_tied_heads()

    def _read(self, path: Path, digests: list[FileDigest]) -> dict[str, Any]:
        checkpoint_io.require_same(checkpoint_io.headers(path), self._known)
        return checkpoint_io.read(path, digests)

    def _prepack_tied_heads(self) -> None:
        # vLLM 0.32 on the CPU keeps a oneDNN-packed copy of a tied output head that its own reload does not
        # renew: without this, new weights answer through the old head.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
