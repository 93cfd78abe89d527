"""Damaged files of adapters: refused with the file and the tensor, never taken for something."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_lora.adapter.webui import files as lora_files
from llm_lora.errors import UserError
from llm_lora.weights import arrays, tensors
from llm_lora.weights.header import safetensors_header

MODULE = "unet.mid_block.attentions.0.proj_in"
KOHYA = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP, ALPHA = f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", f"{KOHYA}.alpha"

Header = dict[str, Any]


def whole(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    """An adapter of one module, with other arrays for its `down`, `up` and `alpha`."""
    parts = {"down": np.ones((2, 3)), "up": np.ones((5, 2)), "alpha": np.array(2.0)} | changes
    keys = {"down": DOWN, "up": UP, "alpha": ALPHA}
    return {keys[half]: np.asarray(array, np.float32) for half, array in parts.items()}


def with_header(path: Path, change: Callable[[Header], None]) -> Path:
    """The file of an adapter whose header was changed, beside the same data."""
    arrays.write(path, whole(), {"a": "b"})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def told(path: Path) -> str:
    """Why a file is refused; every reason names it."""
    with pytest.raises(UserError) as error:
        lora_files.read(path, "sd1")
    assert all(problem.where == str(path) for problem in error.value.problems)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": np.ones(5)}, rf"{UP} \(5,\) do not belong together"),
        ({"down": np.array(1.0)}, rf"{DOWN} \(\) and .* do not belong together"),
        ({"down": np.ones((3, 3))}, "do not belong together"),
        ({"down": np.ones((0, 3)), "up": np.ones((5, 0))}, f"{DOWN} .* are not LoRA halves"),
        ({"up": np.ones((5, 2, 3, 3))}, "are not LoRA halves"),
        ({"alpha": np.ones(2)}, f"{ALPHA} must be one finite number"),
        ({"alpha": np.ones(0)}, f"{ALPHA} must be one finite number"),
        ({"alpha": np.array(math.nan)}, f"{ALPHA} must be one finite number"),
        ({"alpha": np.array(math.inf)}, f"{ALPHA} must be one finite number"),
    ],
)
def test_tensors_that_are_no_lora(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays.write(tmp_path / "a.safetensors", whole(**changes), {})
    with pytest.raises(UserError, match=message):
        lora_files.read(tmp_path / "a.safetensors", "sd1")
    told(tmp_path / "a.safetensors")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    found = whole() | {DOWN: np.ones((2, 3), np.int32)}
    arrays.write(tmp_path / "a.safetensors", found, {})
    assert f"{DOWN} is int32, not floating point" in told(tmp_path / "a.safetensors")


@pytest.mark.parametrize("other", [f"{MODULE}.lora_A.weight", f"{KOHYA}.lora_A.default.weight"])
def test_a_module_that_stands_there_twice(tmp_path: Path, other: str) -> None:
    arrays.write(tmp_path / "a.safetensors", whole() | {other: np.ones((2, 3), np.float32)}, {})
    message = told(tmp_path / "a.safetensors")
    assert other in message and DOWN in message and "the same part of one module" in message


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e999"])
def test_a_configured_alpha_that_is_no_number(tmp_path: Path, alpha: str) -> None:
    found = whole()
    del found[ALPHA]
    arrays.write(tmp_path / "adapter_model.safetensors", found, {})
    (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    with pytest.raises(UserError, match=f"alpha is not a finite number for 1 modules: {MODULE}"):
        lora_files.read(tmp_path, "sd1")


def put(*keys: str, value: Any) -> Callable[[Header], None]:
    """A change of a header: the value at a place; None there takes it away."""

    def change(header: Header) -> None:
        *path, last = keys
        for key in path:
            header = header[key]
        if value is None:
            del header[last]
        else:
            header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put(DOWN, "shape", value=None),
        put(DOWN, "dtype", value=None),
        put(DOWN, "data_offsets", value=[4]),
        put(DOWN, "data_offsets", value=[28, 4]),
        put(DOWN, "data_offsets", value=[-4, 20]),
        put(DOWN, "shape", value=[2, 4]),
        put(DOWN, "shape", value=[2, -3]),
        put(DOWN, "shape", value=["2", 3]),
        put(DOWN, "shape", value=6),
        put(DOWN, "dtype", value="F64"),
        put(DOWN, "dtype", value=["F32"]),
        put(DOWN, value=[]),
    ],
)
def test_a_header_that_lies_about_a_tensor(
    tmp_path: Path, change: Callable[[Header], None]
) -> None:
    message = told(with_header(tmp_path / "a.safetensors", change))
    assert "safetensors file" in message and "damaged" in message and DOWN in message


@pytest.mark.parametrize("metadata", [["a"], "a", 1, {"a": 1}, {"a": None}])
def test_metadata_of_another_form(tmp_path: Path, metadata: Any) -> None:
    path = with_header(tmp_path / "a.safetensors", put("__metadata__", value=metadata))
    assert "damaged or incomplete safetensors file" in told(path)
    with pytest.raises(UserError, match="damaged or incomplete"):
        arrays.metadata(path)


def test_metadata_may_be_null(tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.safetensors", lambda header: header.update(__metadata__=None))
    assert arrays.metadata(path) == {}
    assert lora_files.read(path, "sd1")[MODULE].alpha == 2


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000, b"[]", b'""'])
def test_a_header_of_another_form(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged or incomplete safetensors file" in told(path)


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 40)
    | st.floats()
    | st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", ""])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.just(1), max_size=80)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *(DOWN, UP, ALPHA, "__metadata__", f"{MODULE}.lora_A.weight", f"{KOHYA}.lora_mid.weight"),
        *(f"{KOHYA}.lora_A.default.weight", f"{MODULE}.alpha", "", "x.alpha"),
    ]
)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[Header], None]:
    """Small changes of a header: entries and their members moved, taken away, made odd."""
    steps = draw(
        st.lists(st.sampled_from("entry member move copy".split()), min_size=1, max_size=3)
    )
    drawn = [(step, draw(names), draw(names), draw(odd)) for step in steps]
    member = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))

    def change(header: Header) -> None:
        for step, name, other, value in drawn:
            if step == "entry":
                header[name] = value
            elif step == "member" and isinstance(header.get(name), dict):
                header[name][member] = value
            elif step == "copy" and name in header:
                header[other] = copy.deepcopy(header[name])
            elif step == "move" and name in header:
                header[other] = header.pop(name)

    return change


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(change=mutations())
def test_any_change_of_a_header_is_refused_or_leaves_an_adapter(
    tmp_path: Path, change: Callable[[Header], None]
) -> None:
    path = with_header(tmp_path / "a.safetensors", change)
    try:
        found = lora_files.read(path, "sd1")
        (update,) = found.values()
        assert update.rank > 0 and math.isfinite(update.alpha)
        assert update.up.size == update.up.shape[0] * update.rank
        lora_files.require_fit(found, {MODULE: (5, 3)}, "x")
    except UserError as error:
        assert str(error)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_any_changed_byte_is_refused_or_leaves_an_adapter(
    tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    path = with_header(tmp_path / "a.safetensors", lambda header: None)
    data = bytearray(path.read_bytes())
    data[min(place, len(data) - 1)] = byte
    path.write_bytes(data[: len(data) - cut])
    try:
        lora_files.read(path, "sd1")
        tensors.of_file(path)
        safetensors_header(path)
    except UserError as error:
        assert str(error)
