from . import steps as steps
from .steps import AnyPrepared as AnyPrepared
from .steps import Steps as Steps
