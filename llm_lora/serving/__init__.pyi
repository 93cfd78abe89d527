from . import sources as sources
from .client import Client as Client
