"""Named settings of the learner: what the paper says, what its authors' code does, and what this product does.

A preset gives values under those that a run file states. `docs/algorithm.md` sets them side by side. Sources: arXiv
2603.12273 (text and Table 5), lasgroup/user_interactions at 93cc18d, and its later branch for live updates (3b17d2a).
"""

from typing import Any

_ON_POLICY: dict[str, Any] = {
    "lora": {"rank": 0},
    "teacher": {"kind": "live"},
    "signal": {"log_mix": None, "tis_cap": None, "max_staleness": None},
    "drift": {"max_kl_to_base": None},
}
"""Everything that the product adds is off: one live policy of full parameters, no bound, no correction, no stop."""

_LOGGED: dict[str, Any] = {
    "max_messages": 5,
    "max_prompt_tokens": 2048,
    "max_response_tokens": 2048,
    "text_only": "train",
}

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
        "context": _LOGGED | {"template": "paper", "truncated": "train"},
    },
    "official_offline_code": _ON_POLICY
    | {
        "learning_rate": 2e-6,
        "schedule": "cosine",
        "warmup": 0.05,
        "batch_size": 128,
        "epochs": 2,
        "max_grad_norm": 10.0,
        "optimizer": "adamw_8bit",
        "context": _LOGGED
        | {"template": "offline_code", "truncated": "train", "end_token": "always", "ignore_first_k": 2},
        "workers": {"precision": "pure_bfloat16"},
    },
    "official_online_code": _ON_POLICY
    | {
        "learning_rate": 5e-6,
        "batch_size": 32,
        "optimizer": "adamw_8bit",
        "context": {"template": "online", "truncated": "train", "empty_system": True, "max_response_tokens": 2048},
        "signal": _ON_POLICY["signal"] | {"baseline": "seq_mean"},
        "workers": {"precision": "pure_bfloat16"},
    },
    "live_branch": _ON_POLICY
    | {
        "learning_rate": 5e-6,
        "batch_size": 1,
        "adam_eps": 1e-6,
        "lora": {"rank": 256, "alpha": 512},
        "signal": _ON_POLICY["signal"] | {"estimator": "topk_reverse_kl", "top_k": 20},
    },
}
