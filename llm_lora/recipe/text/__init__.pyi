from .blocks import DataRecipe as DataRecipe
from .recipe import Recipe as Recipe
