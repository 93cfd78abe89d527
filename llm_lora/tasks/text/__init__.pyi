from . import task as task
from .prepared import Prepared as Prepared
from .talk import Talker as Talker
