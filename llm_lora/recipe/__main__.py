"""Write recipes/recipe.schema.json, with which editors complete and check recipes."""

from __future__ import annotations

from llm_lora import files
from llm_lora.recipe import json_schema

if __name__ == "__main__":
    target = files.ASSETS.parent.parent / "recipes" / "recipe.schema.json"
    files.write_json(target, json_schema())
    print(f"wrote {target}")
