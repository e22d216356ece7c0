"""Repacks tied output heads after weights were reloaded on a CPU.

vLLM 0.32 keeps a oneDNN-packed copy of a tied output head there, which its own reload does not renew: without this,
new weights answer through the old head.
"""

from typing import Any


def repack_tied_heads(model: Any) -> None:
    """Pack the output heads of a `torch.nn.Module` of vLLM anew from their weights."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
