"""Export for WebUIs: metadata, notes, preview, and `llm-lora export --webui`."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from llm_lora.adapter.webui import files as lora_files
from llm_lora.adapter.webui.files import Lora, Module
from llm_lora.base.family import Family
from llm_lora.export.webui import metadata as webui_metadata
from llm_lora.export.webui.metadata import Trained
from llm_lora.recipe.image.blocks import ImageData, ImageLora
from llm_lora.recipe.image.recipe import ImageRecipe
from llm_lora.weights import arrays

LORA: Lora = {
    "unet.mid_block.attentions.0.proj_in": Module(
        np.ones((4, 700), np.float32), np.ones((900, 4), np.float32), 6.0
    ),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": Module(
        np.ones((4, 3), np.float32), np.ones((3, 4), np.float32), 6.0
    ),
}


def trained(family: Family = "sd1", *, v: bool = False) -> Trained:
    recipe = ImageRecipe(
        task="image",
        name="ink",
        base="tiny",
        data=ImageData(train=Path("/pictures/style_train"), trigger="sks style", repeats=2),
        lora=ImageLora(rank=4, alpha=6),
    )
    return Trained(
        name="ink",
        recipe=recipe,
        base="./models/base",
        family=family,
        prediction="v" if v else "epsilon",
        resolution=512,
        captions=["sks style, harbour, dawn", "sks style, harbour", "sks style, größe"],
        regularisation=3,
        buckets={(512, 512): 2, (448, 576): 1},
        steps=120,
        epochs=10.0,
        started=datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC),
        seconds=90.5,
    )


def written(path: Path, family: Family = "sd1", *, v: bool = False) -> dict[str, str]:
    found = lora_files.to_arrays(LORA, family)
    arrays.write(path, found, webui_metadata.describe(LORA, found, trained(family, v=v)))
    return arrays.metadata(path)


def version_as_automatic1111_tells_it(notes: dict[str, str]) -> str:
    """The rule in its extensions-builtin/Lora/network.py."""
    if notes.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if notes.get("ss_v2", "") == "True":
        return "SD2"
    return "SD1" if notes else "Unknown"


@pytest.mark.parametrize(
    ("family", "v", "version", "architecture"),
    [
        ("sd1", False, "SD1", "stable-diffusion-v1/lora"),
        ("sd2", False, "SD2", "stable-diffusion-v2-512/lora"),
        ("sd2", True, "SD2", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", False, "SDXL", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_webuis_know_what_base_it_is_for(
    tmp_path: Path, family: Family, v: bool, version: str, architecture: str
) -> None:
    notes = written(tmp_path / "ink.safetensors", family, v=v)
    assert version_as_automatic1111_tells_it(notes) == version
    assert notes["modelspec.architecture"] == architecture
    assert notes["modelspec.prediction_type"] == ("v" if v else "epsilon")
    assert webui_metadata.user_notes(trained(family))["sd version"] == version


def test_the_keys_that_readers_ask_for_are_there(tmp_path: Path) -> None:
    notes = written(tmp_path / "ink.safetensors")
    assert all(isinstance(value, str) and value for value in notes.values())
    # kohya's minimum, the fields shown by AUTOMATIC1111, and those required by ModelSpec 1.0.1.
    for key in (
        "ss_v2 ss_base_model_version ss_network_module ss_network_dim ss_network_alpha "
        "ss_network_args ss_output_name ss_sd_model_name ss_clip_skip ss_training_started_at "
        "ss_bucket_info ss_dataset_dirs ss_tag_frequency ss_resolution ss_num_train_images "
        "sshs_model_hash sshs_legacy_hash modelspec.sai_model_spec modelspec.architecture "
        "modelspec.implementation modelspec.title modelspec.resolution"
    ).split():
        assert key in notes, key
    assert (notes["ss_network_dim"], notes["ss_network_alpha"]) == ("4", "6")
    assert notes["modelspec.sai_model_spec"] == "1.0.1"
    assert notes["modelspec.trigger_phrase"] == "sks style"
    assert notes["modelspec.resolution"] == "512x512"
    assert notes["modelspec.date"] == "2026-11-21T10:00:00"
    assert float(notes["ss_training_finished_at"]) - float(notes["ss_training_started_at"]) == 90.5
    assert json.loads(notes["ss_dataset_dirs"]) == {"style_train": {"n_repeats": 2, "img_count": 3}}
    assert json.loads(notes["ss_tag_frequency"]) == {
        "style_train": {"sks style": 3, "harbour": 2, "dawn": 1, "größe": 1}
    }
    assert json.loads(notes["ss_bucket_info"])["buckets"]["0"] == {
        "resolution": [448, 576],
        "count": 1,
    }


def test_the_hashes_are_of_the_file_as_others_compute_them(tmp_path: Path) -> None:
    path = tmp_path / "ink.safetensors"
    notes = written(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert notes["sshs_model_hash"] == hashlib.sha256(data[8 + length :]).hexdigest()
    assert notes["modelspec.hash_sha256"] == f"0x{notes['sshs_model_hash']}"
    assert re.fullmatch("[0-9a-f]{8}", notes["sshs_legacy_hash"])


def test_safetensors_and_diffusers_read_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    written(tmp_path / "ink.safetensors")
    with safe_open(tmp_path / "ink.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
        assert file.get_tensor("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha") == 6.0
        assert len([*file.keys()]) == 6
