"""How often a fault is tried: as often as a push can wait for, or as often as it takes to trust the answer."""

import os

SLOW = os.environ.get("SDPO_SLOW") == "1"
"""Whether this is the slow lane."""
KILLS = 200 if SLOW else 20
