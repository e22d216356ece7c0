"""One update under Ray Train and DeepSpeed."""
