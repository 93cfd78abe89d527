from . import judges as judges
from . import models as models
from .faces import FaceModel as FaceModel
from .judges import Judges as Judges
from .models import VisionModel as VisionModel
