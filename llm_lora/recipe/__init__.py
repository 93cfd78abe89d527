"""Recipes: YAML files read into frozen, checked settings."""
