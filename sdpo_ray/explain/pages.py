"""Default directories of explanations."""

from pathlib import Path

PAGES = Path("runs") / "explain"


def page_of(turn_id: str) -> Path:
    """Directory of a turn's pages, unless `--out` names another."""
    # Ids of this project are safe in a path; a table may hold others.
    return PAGES / "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in turn_id)
