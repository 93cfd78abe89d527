"""The optional model that compares faces: dlib's.

Its author placed the two files used here in the public domain; the weights of the most widely used
face models exclude commercial use. dlib's file format holds only numbers, so loading runs no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm_lora.errors import UserError

NAME = "faces"
"""Its name in recipes."""

_WEIGHTS = "face_recognition_models"
_LANDMARKS = "shape_predictor_5_face_landmarks.dat"
_DESCRIPTOR = "dlib_face_recognition_resnet_model_v1.dat"


@dataclass(frozen=True)
class FaceModel:
    """Two files: the landmark detector (eyes and nose), and the descriptor (128 numbers)."""

    landmarks: Path
    descriptor: Path


def resolve() -> FaceModel:
    """Find the installed model, without importing it.

    Raises:
        UserError: dlib or its weights are not installed.
    """
    spec = find_spec(_WEIGHTS)
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0]) / "models" if places else Path()
    model = FaceModel(folder / _LANDMARKS, folder / _DESCRIPTOR)
    whole = bool(places) and model.landmarks.is_file() and model.descriptor.is_file()
    missing = [
        name for name, there in (("dlib", find_spec("dlib")), (_WEIGHTS, whole)) if not there
    ]
    if missing:
        raise UserError(
            f"the model that compares faces is not installed: {' and '.join(missing)}",
            fix="pip install 'llm-lora[faces]'",
        )
    return model
