"""What an interaction teaches, token by token."""
