"""Causal language models of transformers, loaded and scored over packed rows."""
