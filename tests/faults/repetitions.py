"""Number of repetitions of a fault: few by default, many in the slow lane (`SDPO_SLOW=1`)."""

import os

SLOW = os.environ.get("SDPO_SLOW") == "1"
"""Whether this is the slow lane."""
KILLS = 200 if SLOW else 20
