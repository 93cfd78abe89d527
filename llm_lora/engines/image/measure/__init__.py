"""Measurements of painted pictures: fidelity, strength, alignment and drift."""
