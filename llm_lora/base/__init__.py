"""Bases: frozen models found, checked and identified, with their chat templates."""
