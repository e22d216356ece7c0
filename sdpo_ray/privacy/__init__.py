"""Erasure of a user's data, and lineage between users, snapshots and policies."""
