"""What interactions teach, for people to read."""
