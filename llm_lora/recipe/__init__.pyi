from .loading import AnyRecipe as AnyRecipe
from .loading import Read as Read
from .loading import convert as convert
from .loading import json_schema as json_schema
from .loading import load as load
from .loading import read as read
from .mistakes import show as show
