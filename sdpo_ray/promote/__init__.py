"""The gate, releases, canaries, and the records of both in MLflow."""
