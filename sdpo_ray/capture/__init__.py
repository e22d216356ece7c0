"""A chat turn becomes a `Turn` on disk."""
