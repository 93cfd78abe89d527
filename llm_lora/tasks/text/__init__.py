"""The text task."""
