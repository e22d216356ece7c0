"""Start a Ray cluster on this machine, connect to one, deploy to one."""
