"""Faces: a descriptor (128 numbers) of a picture's largest face, similar for one person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dlib
import numpy as np

from llm_lora.scores.image import Floats
from llm_lora.vision import FaceModel

if TYPE_CHECKING:
    from PIL import Image

SAME = 0.6
"""Distance of two descriptors up to which they count as the same person: the threshold that the
model was trained for, correct for 99.38% of the pairs of Labeled Faces in the Wild (King, High
Quality Face Recognition with Deep Metric Learning, blog.dlib.net, 2017)."""

_ENLARGED = 1
"""How often a picture is doubled in size before the search for faces; without doubling, a face
needs at least 80 pixels."""


class Faces:
    """dlib's detector and descriptor, on the CPU."""

    def __init__(self, model: FaceModel) -> None:
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(model.landmarks))
        self._descriptor = dlib.face_recognition_model_v1(str(model.descriptor))

    def largest(self, image: Image.Image) -> Floats | None:
        """The descriptor (128) of the largest face in an RGB picture; None if none is found.

        Faces must be upright and roughly frontal.
        """
        pixels = np.ascontiguousarray(image)
        boxes = self._detector(pixels, _ENLARGED)
        if not boxes:
            return None
        box = max(boxes, key=lambda one: one.area())
        found = self._descriptor.compute_face_descriptor(pixels, self._landmarks(pixels, box))
        return np.asarray(found, np.float64)
