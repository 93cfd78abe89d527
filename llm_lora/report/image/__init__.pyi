from . import building as building
from .document import AdapterIdentity as AdapterIdentity
from .document import BaseIdentity as BaseIdentity
from .document import ImageReport as ImageReport
from .versus import ImageVersus as ImageVersus
from .versus import compare as compare
