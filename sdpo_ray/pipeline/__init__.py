"""The training loop: curation, update, evaluation, gate and release, wired for one run."""
