"""Configurations that tests start from."""

from typing import Any

PAPER: dict[str, Any] = {
    "lora": {"rank": 0},
    "teacher": {"kind": "live"},
    "signal": {"log_mix": None, "tis_cap": None},
}
"""The paper's algorithm: all parameters learn from a live teacher, without bounds or corrections."""
