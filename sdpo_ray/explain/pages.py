"""Where explanations are written when no directory is named."""

from pathlib import Path

PAGES = Path("runs") / "explain"


def page_of(turn_id: str) -> Path:
    """Where the page of a turn is, unless `--out` said otherwise."""
    # An id of ours is safe in a path; the table may hold others.
    return PAGES / "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in turn_id)
