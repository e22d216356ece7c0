"""Interactions to packed training batches."""
