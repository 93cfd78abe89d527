"""Scores of answers, their uncertainty, and the gates they must pass."""
