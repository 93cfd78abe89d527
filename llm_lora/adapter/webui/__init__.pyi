from . import files as files
from .files import Lora as Lora
from .files import Module as Module
from .modules import stem as stem
