"""Requests for text, their answers and verdicts."""
