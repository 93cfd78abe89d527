from . import task as task
from .prepared import Prepared as Prepared
