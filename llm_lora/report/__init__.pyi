from . import pages as pages
from .document import BaseIdentity as BaseIdentity
from .document import RecipeIdentity as RecipeIdentity
from .document import Report as Report
from .document import Versus as Versus
from .reading import read_report as read_report
