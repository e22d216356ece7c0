"""vLLM's engine with what recording needs, and no more."""
