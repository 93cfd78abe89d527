from . import exporting as exporting
from . import merge as merge
from .merge import Merged as Merged
