from . import reading as reading
from .reading import Converted as Converted
