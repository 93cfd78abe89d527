from . import curve as curve
from . import figures as figures
from . import gates as gates
from .figures import Floats as Floats
from .figures import Probe as Probe
from .gates import DIMENSIONS as DIMENSIONS
from .gates import SCHEMA_VALID as SCHEMA_VALID
