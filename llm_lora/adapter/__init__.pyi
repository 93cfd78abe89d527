from . import base as base
from . import folder as folder
from . import sources as sources
from .base import AnyBase as AnyBase
from .folder import CONFIG as CONFIG
from .folder import MADE as MADE
from .folder import Adapter as Adapter
from .sources import Source as Source
