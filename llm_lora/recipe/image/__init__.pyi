from .blocks import ImageData as ImageData
from .blocks import ImageGenerate as ImageGenerate
from .blocks import ImageJudge as ImageJudge
from .blocks import ImageLora as ImageLora
from .blocks import ImageTrain as ImageTrain
from .recipe import ImageRecipe as ImageRecipe
