"""Named settings of the learner: this product's, and those of the paper's two experiments.

A preset gives values that apply where a run file gives none. `docs/algorithm.md` sets them side by side. Source: arXiv
2603.12273 (text and Table 5).
"""

from typing import Any

_ON_POLICY: dict[str, Any] = {
    "lora": {"rank": 0},
    "teacher": {"kind": "live"},
    "signal": {"log_mix": None, "tis_cap": None, "max_staleness": None},
    "drift": {"max_kl_to_base": None},
}
"""Everything that this product adds is off: one live policy of full parameters, no bound, no correction, no stop."""

PRESETS: dict[str, dict[str, Any]] = {
    "continual": {},
    "paper_online": _ON_POLICY
    | {
        "learning_rate": 5e-6,
        "batch_size": 32,
        "context": {"template": "paper", "truncated": "train", "max_response_tokens": 2048},
    },
    "paper_offline": _ON_POLICY
    | {
        "learning_rate": 2e-6,
        "schedule": "cosine",
        "warmup": 0.05,
        "batch_size": 32,
        "epochs": 2,
        "context": {
            "template": "paper",
            "truncated": "train",
            "max_messages": 5,
            "max_prompt_tokens": 2048,
            "max_response_tokens": 2048,
            "text_only": "train",
        },
    },
}

REMOVED_PRESETS = dict.fromkeys(
    ("official_offline_code", "official_online_code", "live_branch"),
    "docs/algorithm.md lists what the authors' code does; start from 'paper_offline' or 'paper_online'",
)
"""Presets of earlier versions, and what to use instead."""
