"""The tables `turns`, `feedback`, `pending` and `interactions`, on Delta Lake."""
