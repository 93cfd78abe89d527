"""Recipes with `task: image`."""
