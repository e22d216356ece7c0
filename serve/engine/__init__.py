"""The vLLM engine that records its responses and whose weights and adapters can be swapped."""
