"""The sections of a recipe that a training reads, typed as the others are (``recipes.settings``)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictInt, field_validator, model_validator

from lakering.documents import Settings
from recipes.settings import Int, Name

#: Pillow itself warns of larger images.
MAX_PIXELS = 89_478_485
MAX_MIB = 1 << 30
Pixels = Annotated[StrictInt, Field(ge=1, le=8192)]


def _module_name(text: str) -> str:
    if not all(part.isidentifier() for part in text.split(".")):
        raise ValueError("expected the name of a Python module, such as my_models or my_package.models: no path, no .py")
    return text


ModuleName = Annotated[str, AfterValidator(_module_name)]


class Named(Settings):
    """Something of the user's own: ``name`` in a Python module that lies in the recipe's folder or on PYTHONPATH."""

    module: ModuleName
    name: Name


class ModelSettings(Settings):
    """The model's name; its other keys are checked by the model itself, in ``training/models``."""

    model_config = Settings.model_config | {"extra": "allow"}
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Normalise(Settings):
    """``(value / 255 - mean) / std``, per channel or one figure for all."""

    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1, max_length=3)
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1, max_length=3)


class ImageSettings(Settings):
    """How an image column becomes float32 of [height, width, channels]: read, turned upright, cropped, resized,
    normalised. Random crops and flips are drawn in training alone; every other split takes the centre."""

    size: tuple[Pixels, ...] = Field(min_length=2, max_length=2, description="height, width")
    channels: Literal[1, 3] = 3
    crop: Literal["center", "random"] = Field("center", description="the largest box of the size's shape, or a random one")
    scale: tuple[float, ...] = Field(
        (0.25, 1.0), min_length=2, max_length=2, description="of random crops: least and largest share of the image's area"
    )
    flip: bool = Field(False, description="mirror every second image, left to right")
    normalise: Normalise | None = Field(None, description="without it, values lie in 0..1")
    on_error: Literal["fail", "skip"] = Field("fail", description="skip: a broken image is zeros, and its row weighs nothing")
    max_pixels: Int = Field(50_000_000, ge=1, le=MAX_PIXELS, description="a larger image is refused before it is decoded")

    @model_validator(mode="after")
    def _fitting(self) -> ImageSettings:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be two shares of the area, 0 < least <= largest <= 1; got {low}, {high}")
        for name, values in self.normalise or ():
            if len(values) not in (1, self.channels):
                raise ValueError(f"normalise.{name} has {len(values)} figures for {self.channels} channels")
        return self


class StepDecay(Settings):
    """``schedule: step``: the learning rate is multiplied by ``factor`` at each of ``at_epochs``, which may be fractions
    (2.5: in the middle of the third epoch), so that they hold for any batch size."""

    at_epochs: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    factor: float = Field(0.1, gt=0, lt=1)

    @field_validator("at_epochs")
    @classmethod
    def _ascending(cls, epochs: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"epochs must ascend, and {', '.join(f'{epoch:g}' for epoch in epochs)} do not")
        return epochs


class LearningRateScaling(Settings):
    """``learning_rate`` and ``warmup_steps`` are those of batches of ``base_batch_size`` rows: the rate grows with
    global_batch_size, or with its square root; warm-up takes the same number of rows."""

    rule: Literal["linear", "square_root"]
    base_batch_size: Int = Field(ge=1)


class EarlyStopping(Settings):
    """The training ends after an epoch once ``metric``, of the validation split, has not got better by more than
    ``min_delta`` for ``patience`` epochs. Which way is better is known of the metrics that are made here."""

    metric: Name
    patience: Int = Field(1, ge=1)
    min_delta: float = Field(0.0, ge=0)
    better: Literal["higher", "lower"] | None = None


class Training(Settings):
    """How the model is trained. ``lanes`` and ``window`` (row groups in a shuffle block) order the rows; neither
    depends on the number of ranks. ``lanes`` 0 means the largest divisor of the batch up to 1024."""

    global_batch_size: Int = Field(4096, ge=1)
    epochs: Int = Field(3, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    scale_learning_rate: LearningRateScaling | None = Field(None, description="with the batch; not at all by default")
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_decay: StepDecay | None = None
    warmup_steps: Int = Field(0, ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "lamb", "lars"] = "adam"
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd and lars")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="the most that the norm of all gradients together may be")
    accumulate: Int = Field(1, ge=1, description="parts that a batch is worked through in, to save memory")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="0 and 1 become s/2 and 1 - s/2; of K classes each gets s/K")
    precision: Literal["float32", "float64", "mixed_float16", "mixed_bfloat16"] = Field(
        "float32", description="mixed: float32 variables and updates, the model computed in half precision"
    )
    compression: Literal["none", "fp16"] = Field("none", description="of gradients between ranks")
    sparse_gradients: Literal["auto", "dense"] = Field("auto", description="auto: large tables' gradients by rows where shorter")
    seed: Int = Field(17, ge=0)
    window: Int = Field(16, ge=1)
    lanes: Int = Field(0, ge=0)
    drop_last: bool = Field(False, description="leave out a short last batch")
    columns: tuple[Name, ...] | None = Field(None, min_length=1, description="the features to train on; all of them by default")
    images: dict[Name, ImageSettings] = Field({}, description="how image columns are decoded")
    early_stopping: EarlyStopping | None = None
    loss: Named | None = Field(None, description="the user's own: (label, score), tensors of the rows, to each row's loss")
    metrics: tuple[Named, ...] = Field((), description="the user's own, beside those of the label's kind")
    checkpoint_every: Int = Field(200, ge=1, description="steps")
    keep_checkpoints: Int = Field(3, ge=1)
    keep_best: bool = Field(False, description="keep the checkpoint of the epoch with the least validation loss, too")
    export: Literal["last", "best"] = Field("last", description="the epoch whose weights become the model")
    commit_every: Int = Field(50, ge=1, description="steps; of elastic trainings: how far they go back when a rank is lost")
    compare_every: Int = Field(1000, ge=1, description="steps after which all ranks' weights are compared; at checkpoints too")
    deterministic: bool = Field(False, description="bit-equal from run to run on as many ranks of the same machines; slower")
    tensorboard: bool = Field(True, description="write event files beside the log of steps")

    @field_validator("compression", mode="before")
    @classmethod
    def _possible(cls, compression: Any) -> Any:
        if compression in ("bf16", "bfloat16"):
            raise ValueError("bfloat16 cannot be sent: Gloo, over which the ranks speak, has no such type; fp16 is as short")
        if compression == "adasum":
            raise ValueError("Adasum is not in this Horovod's build: gradients are summed; leave compression out, or take fp16")
        return compression

    @model_validator(mode="after")
    def _fitting(self) -> Training:
        if self.momentum and self.optimizer not in ("sgd", "lars"):
            raise ValueError(f"momentum ({self.momentum:g}) is of sgd and lars; {self.optimizer} has its own: leave it out")
        if (self.schedule == "step") != (self.step_decay is not None):
            has = "has no" if self.step_decay is None else "does not use"
            raise ValueError(f"schedule: {self.schedule} {has} step_decay; write schedule: step with step_decay: "
                             "{at_epochs: [2, 3], factor: 0.1}, or neither")  # fmt: skip
        if self.export == "best" and not self.keep_best:
            raise ValueError("export: best takes the checkpoint that keep_best keeps: write keep_best: true with it")
        if self.accumulate > self.global_batch_size:
            raise ValueError(f"accumulate ({self.accumulate:,}) cuts a batch into more parts than it has rows "
                             f"(global_batch_size {self.global_batch_size:,})")  # fmt: skip
        return self


class FeedSettings(Settings):
    """How a training is fed: what it reads, and in which order, does not depend on these. Memory is for each rank."""

    reading_threads: Int = Field(1, ge=1, le=64, description="as many as read_ahead has room for their row groups")
    read_ahead: Int = Field(64, ge=0, le=MAX_MIB, description="MiB that may be read beyond two windows")
    cache: Literal["none", "memory", "disk"] = Field("none", description="where row groups are kept, decoded, for later epochs")
    cache_mib: Int = Field(4096, ge=1, le=MAX_MIB, description="the most that the cache takes")
    cache_folder: str | None = Field(None, min_length=1, description="of the disk cache; ranks and trainings may share it")

    @model_validator(mode="after")
    def _folder_for_disk(self) -> FeedSettings:
        if self.cache == "disk" and self.cache_folder is None:
            raise ValueError("cache: disk needs a cache_folder")
        if "://" in (self.cache_folder or ""):
            raise ValueError(f"cache_folder {self.cache_folder} must be a local folder")
        return self


class Evaluation(Settings):
    split: Literal["train", "validation", "test"] = "test"
    trees: bool = Field(True, description="train boosted trees on the same columns, as a baseline")
    max_tree_rows: Int = Field(2_000_000, ge=1)
    slices: tuple[Name, ...] = Field((), description="id and float columns, for each value or range of which figures are told")
    slice_values: Int = Field(20, ge=1, le=500, description="of an id: those of the greatest weight; the rest are one slice")
