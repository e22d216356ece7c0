"""Import conversation logs of other systems, and export interactions and feedback for other trainers."""
