"""Measurements of a running server: load, cost, drift from the report."""
