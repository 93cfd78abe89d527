from .captioning import Captioner as Captioner
from .captioning import ZeroShot as ZeroShot
from .clip import Clip as Clip
from .dino import Dino as Dino
from .faces import SAME as SAME
from .faces import Faces as Faces
