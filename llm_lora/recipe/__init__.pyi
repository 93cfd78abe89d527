from .for_machine import read_for_machine as read_for_machine
from .loading import AnyRecipe as AnyRecipe
from .loading import convert as convert
from .loading import json_schema as json_schema
from .loading import load as load
from .mistakes import show as show
