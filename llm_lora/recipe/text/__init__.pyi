from .blocks import CheckRecipe as CheckRecipe
from .blocks import DataRecipe as DataRecipe
from .blocks import GenerateRecipe as GenerateRecipe
from .blocks import LoraRecipe as LoraRecipe
from .blocks import PreferRecipe as PreferRecipe
from .blocks import TrainRecipe as TrainRecipe
from .recipe import Recipe as Recipe
