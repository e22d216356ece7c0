"""Canary and shadow releases: a candidate gets part of the users' chats, or copies of them."""
