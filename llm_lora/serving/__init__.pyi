from . import sources as sources
from .client import Client as Client
from .readiness import Readiness as Readiness
