"""Requests for pictures."""
