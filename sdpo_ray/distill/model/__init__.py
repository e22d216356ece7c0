"""transformers causal language models: loading, attention and scoring over packed rows, LoRA adapters."""
