"""Recipes of lora-scripts, converted."""
