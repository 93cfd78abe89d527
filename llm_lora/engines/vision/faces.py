"""Faces: the largest one of a picture, as 128 numbers that are alike for pictures of one person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dlib
import numpy as np

from llm_lora.scores.image import Floats
from llm_lora.vision import FaceModel

if TYPE_CHECKING:
    from PIL import Image

SAME = 0.6
"""Distance of two descriptors up to which they are taken for one person's: what the model was
trained for, and right for 99.38% of the pairs of Labeled Faces in the Wild (King, High Quality Face
Recognition with Deep Metric Learning, blog.dlib.net, 2017)."""

_ENLARGED = 1
"""How often a picture is doubled in size to look for faces; without it they have to be of 80
pixels."""


class Faces:
    """dlib's detector and descriptor, on the CPU."""

    def __init__(self, model: FaceModel) -> None:
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(model.landmarks))
        self._descriptor = dlib.face_recognition_model_v1(str(model.descriptor))

    def largest(self, image: Image.Image) -> Floats | None:
        """The descriptor (128) of the largest face in a picture in RGB; None where none is found.

        Faces have to look at the viewer, more or less, and to stand upright.
        """
        pixels = np.ascontiguousarray(image)
        boxes = self._detector(pixels, _ENLARGED)
        if not boxes:
            return None
        box = max(boxes, key=lambda one: one.area())
        found = self._descriptor.compute_face_descriptor(pixels, self._landmarks(pixels, box))
        return np.asarray(found, np.float64)
