"""Weights of the served policy: the release pointer is read, and the engine's weights follow it."""
