"""LoRA: releases as adapters, and personal policies, each under a name that never means other weights."""
