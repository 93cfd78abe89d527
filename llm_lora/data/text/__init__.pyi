from . import dataset as dataset
from . import formats as formats
from .dataset import Dataset as Dataset
from .weighing import Course as Course
from .weighing import weigh as weigh
