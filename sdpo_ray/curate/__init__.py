"""Turns become interactions worth learning from."""
