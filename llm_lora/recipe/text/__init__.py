"""Recipes with `task: text`."""
