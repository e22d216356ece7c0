"""A Ray cluster on this machine, and deployment to one that is there."""
