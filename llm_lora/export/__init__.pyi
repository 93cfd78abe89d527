from . import exporting as exporting
from . import merge as merge
