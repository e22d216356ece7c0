"""A candidate among users, before it is everybody's: canary and shadow."""
