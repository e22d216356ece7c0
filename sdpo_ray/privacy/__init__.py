"""Erasure of a user, and lineage from what was said to the policies that learned from it."""
