from .asking import PAINT as PAINT
from .asking import Painting as Painting
