"""Settings that the blocks of text and image recipes share.

A block adds what differs between the tasks: the default, and a description where none is here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_lora.recipe.scalars import Number, Switch, Whole

Rank = Annotated[Whole, Field(ge=1, le=512)]
Alpha = Annotated[Whole, Field(ge=1, le=2048)]
Dropout = Annotated[Number, Field(ge=0, lt=1)]

MaxSteps = Annotated[
    Whole | None,
    Field(ge=1, description="Stop after this many optimizer steps even if epochs remain."),
]
Warmup = Annotated[Number, Field(ge=0, lt=1, description="Fraction of all steps used for warm-up.")]
Schedule = Annotated[
    Literal["cosine", "linear", "constant"],
    Field(description="Learning rate schedule after the warm-up."),
]
Accumulate = Annotated[Whole, Field(ge=1, le=4096)]
Checkpointing = Annotated[
    Switch,
    Field(description="Gradient checkpointing: much less memory for about a third more time."),
]
WeightDecay = Annotated[Number, Field(ge=0, le=1)]
MaxGradNorm = Annotated[
    Number, Field(gt=0, description="Maximum gradient norm; larger gradients are clipped.")
]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1)]
