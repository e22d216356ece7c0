"""Runs inside vLLM's worker: read new weights first, put them into the model second.

vLLM's `reload_weights` leaves layers empty when a file turns out torn half-way, so every tensor is staged and
checked against the model's own files before the model is touched.
"""

from pathlib import Path
from typing import Any


class SwapExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`; methods are called by `collective_rpc`."""

    device: Any
    model_runner: Any
    reload_weights: Any
    _staged: list[tuple[str, Any]]

    def stage_weights(self, path: str) -> int:
        """Read all safetensors of `path` into memory. Returns their number; raises on a missing or torn file."""
        from safetensors import safe_open

        files = sorted(Path(path).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{path} holds no safetensors file")
        staged = []
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                staged += [(name, tensors.get_tensor(name)) for name in tensors.keys()]  # noqa: SIM118
        self._check_shapes(dict(staged))
        self._staged = staged
        return len(staged)

    def load_staged(self) -> None:
        """Put the staged tensors into the model, in place."""
        staged, self._staged = self._staged, []
        self.reload_weights(weights_iterator=iter(staged))
        if self.device.type == "cpu":
            self._prepack_tied_heads()

    def _check_shapes(self, staged: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture while the model is still whole."""
        shapes = {name: tuple(tensor.shape) for name, tensor in staged.items()}
        known = getattr(self, "_shapes", None)
        if known is None:
            from safetensors import safe_open

            known = {}
            for file in sorted(Path(self.model_runner.model_config.model).glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    known |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            self._shapes = known
        if shapes != known:
            odd = sorted(name for name in shapes.keys() | known.keys() if shapes.get(name) != known.get(name))
            raise ValueError(f"not the served architecture: {odd[0]} is {shapes.get(odd[0])}, not {known.get(odd[0])}")

    def _prepack_tied_heads(self) -> None:
        # vLLM 0.32 on the CPU keeps a oneDNN-packed copy of a tied output head that its own reload does not
        # renew: without this, new weights answer through the old head.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
