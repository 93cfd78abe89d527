"""Vision models: CLIP compares pictures with texts, BLIP describes them, DINO compares them with
one another, and dlib compares faces. They are found locally or on the hub, and checked before any
heavy import.

dlib's models are optional. Their author placed the two files used here in the public domain; the
weights of the most widely used face models exclude commercial use. dlib's file format holds only
numbers, so loading runs no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llm_lora.base import hub
from llm_lora.base import text as bases
from llm_lora.errors import Problem, UserError
from llm_lora.files import ASSETS
from llm_lora.weights import header

TINY = ASSETS / "tiny_judge"
"""The embedded CLIP model, named "tiny": it knows only drawn shapes and styles."""

DINO = ("dinov2", "dinov2_with_registers", "vit")
"""Kinds of models that compare pictures without captions. The first DINO has the generic type of
vision transformers, so others of this type are accepted too. DINOv3 is missing: transformers
preprocesses its pictures only with torchvision."""

FACES = "faces"
"""Name of the model that compares faces."""

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt"]
_PREPARES = ("preprocessor_config.json", "processor_config.json")
_BOT = "SFconvertbot"
_CONVERTED = "Adding `safetensors` variant of this model"
_FACE_WEIGHTS = "face_recognition_models"
_LANDMARKS = "shape_predictor_5_face_landmarks.dat"
_DESCRIPTOR = "dlib_face_recognition_resnet_model_v1.dat"


@dataclass(frozen=True)
class VisionModel:
    """A model's folder; `kind` is the model_type in its config.json."""

    name: str
    path: Path
    kind: str


@dataclass(frozen=True)
class FaceModel:
    """Two files: the landmark detector (eyes and nose), and the descriptor (128 numbers)."""

    landmarks: Path
    descriptor: Path


def resolve(name: str, *kinds: str, download: bool = True) -> VisionModel:
    """Find a model of one of the given kinds.

    Args:
        name: "tiny" (embedded), a folder, or the name of a model on the hub.
        kinds: the accepted kinds: "clip", "blip", or `DINO`.
        download: whether it may be downloaded; if not, it must be in the local cache.

    Raises:
        UserError: it is missing, of another kind, or has no weights in safetensors.
    """
    folder = TINY if name == "tiny" else Path(name).expanduser()
    if not folder.is_dir():
        if not hub.HUB_ID.fullmatch(name):
            raise UserError(
                "no such folder", where=name, fix="check the path, or name a model as owner/name"
            )
        folder = _fetch(name, download=download)
    found = bases.read_config(folder).get("model_type")
    if found not in kinds:
        raise UserError(
            f"this is a model of type {found}, not {' or '.join(kinds)}",
            where=name,
            fix="omit --model for the default, or choose another --method",
        )
    header.weight_files(folder)
    if not any((folder / one).is_file() for one in _PREPARES):
        raise UserError(
            f"{_PREPARES[0]} is missing, which defines how pictures are preprocessed",
            where=name,
            fix="use the model's complete folder",
        )
    return VisionModel(name, folder, found)


def _fetch(name: str, *, download: bool) -> Path:
    """A model's folder in the hub's cache.

    Older models have only pickled weights, which may run code on loading. For most of these the
    hub's own bot has opened a pull request with safetensors; that revision is used instead.
    """
    try:
        folder = hub.fetch(name, None, _FILES, local_only=not download)
        if list(folder.glob("*.safetensors")) or not download:
            return folder
        proposal = _proposal(name)
        if proposal is None:
            return folder
        return hub.fetch(name, proposal, _FILES, local_only=False)
    except UserError as error:
        fix = "check the name, or name the folder of a model that was fetched before"
        raise UserError(Problem(one.what, one.where, fix) for one in error.problems) from None


def _proposal(name: str) -> str | None:
    """The revision in which the bot added safetensors, if there is one."""
    from huggingface_hub import errors, get_repo_discussions

    try:
        for one in get_repo_discussions(name):
            if one.is_pull_request and one.author == _BOT and one.title == _CONVERTED:
                return str(one.git_reference)
    except errors.HfHubHTTPError:
        return None
    return None


def resolve_faces() -> FaceModel:
    """Find the installed model that compares faces, without importing it.

    Raises:
        UserError: dlib or its weights are not installed.
    """
    spec = find_spec(_FACE_WEIGHTS)
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0]) / "models" if places else Path()
    model = FaceModel(folder / _LANDMARKS, folder / _DESCRIPTOR)
    whole = bool(places) and model.landmarks.is_file() and model.descriptor.is_file()
    missing = [
        name for name, there in (("dlib", find_spec("dlib")), (_FACE_WEIGHTS, whole)) if not there
    ]
    if missing:
        raise UserError(
            f"the model that compares faces is not installed: {' and '.join(missing)}",
            fix="pip install 'llm-lora[faces]'",
        )
    return model
