from . import document as document
from . import page as page
from .document import FORMS as FORMS
from .document import Judged as Judged
from .versus import compare as compare
