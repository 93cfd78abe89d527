from . import modelfile as modelfile
from . import writing as writing
