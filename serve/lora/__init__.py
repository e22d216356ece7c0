"""LoRA adapters in the engine: as releases, and as personal policies."""
