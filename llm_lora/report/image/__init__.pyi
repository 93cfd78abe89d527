from . import document as document
from .versus import compare as compare
