"""Constrained decoding of a schema: what a decoder enforces, and how well data and schema fit it."""
