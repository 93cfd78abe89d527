from . import live as live
from .live import of as of
