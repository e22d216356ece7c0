"""A report becomes a decision, a decision a release; MLflow keeps the books."""
