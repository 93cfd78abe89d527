from . import judges as judges
from . import models as models
from .judges import Judges as Judges
from .models import FaceModel as FaceModel
from .models import VisionModel as VisionModel
