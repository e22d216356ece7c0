"""Personal policies: a LoRA adapter for one user or tenant, trained, evaluated and stored."""
