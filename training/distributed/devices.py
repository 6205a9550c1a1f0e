"""Which device a rank trains on: one GPU of its own, or the CPU. Chosen before TensorFlow starts."""

from __future__ import annotations

import os
import sys
from typing import Literal, get_args

from lakering.errors import SettingError, TrainingError

Device = Literal["auto", "cpu", "gpu"]
#: Set in a rank under Spark: the address of the GPU that Spark assigned to its task.
ASSIGNED = "LAKERING_ASSIGNED_GPU"


def parse_device(text: str) -> Device:
    """Raises SettingError for anything else than auto, cpu or gpu."""
    for known in get_args(Device):
        if text == known:
            return known
    raise SettingError(f"--device {text}: expected {', '.join(get_args(Device))}")


def gpu_environment(address: str) -> dict[str, str]:
    """What makes a process see one GPU alone, by its index in ``nvidia-smi`` or its UUID. CUDA would otherwise number
    GPUs by speed, while nvidia-smi and Spark's discovery scripts number them by their place on the bus."""
    return {ASSIGNED: address, "CUDA_VISIBLE_DEVICES": address, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def pin_device(device: Device, rank: int, local_rank: int, local_size: int) -> str:
    """Leaves one GPU visible to TensorFlow, growing its memory as needed, or none; returns what a person is told.

    A GPU that Spark assigned is the only one visible already; else the local rank picks one, where there are as many as
    ranks. Raises TrainingError when a GPU was asked for (``gpu``, or one was assigned) and there is none."""
    import tensorflow as tf

    seen, assigned = tf.config.list_physical_devices("GPU"), os.environ.get(ASSIGNED)
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return f"CPU, not GPU {assigned} that Spark assigned" if assigned else "CPU"
    number = 0 if assigned else local_rank
    enough = len(seen) > 0 if assigned else len(seen) >= local_size
    if not enough:
        if assigned or device == "gpu":
            raise _no_gpu(rank, assigned, len(seen), local_size)
        tf.config.set_visible_devices([], "GPU")
        return f"CPU, {len(seen)} GPU being too few for {local_size} ranks" if seen else "CPU"
    tf.config.set_visible_devices([seen[number]], "GPU")
    tf.config.experimental.set_memory_growth(seen[number], True)
    return f"GPU {assigned or number}"


def _no_gpu(rank: int, assigned: str | None, seen: int, local_size: int) -> TrainingError:
    import tensorflow as tf

    where = f"rank {rank} on {os.uname().nodename}"
    if seen:
        return TrainingError(f"--device gpu: {where} is one of {local_size} ranks there, and TensorFlow sees {seen} GPU",
                             next_step=f"start at most {seen} ranks on a host, or train with --device cpu")  # fmt: skip
    asked = f"Spark assigned it GPU {assigned}" if assigned else "--device gpu was asked for"
    built = "" if tf.test.is_built_with_cuda() else "; this TensorFlow is built without CUDA"
    return TrainingError(
        f"{where}: {asked}, and TensorFlow sees no GPU{built}",
        next_step="see whether the driver is there (nvidia-smi on that host), and install TensorFlow with the CUDA libraries "
        "(pip install 'tensorflow[and-cuda]', the same version) where the ranks run; or train with --device cpu",
    )


def tell_allreduce(device: str) -> None:
    """One line, on rank 0 of several on GPUs: over what gradients are summed."""
    if not device.startswith("GPU"):
        return
    import horovod.tensorflow as hvd

    text = "training: gradients are summed over NCCL"
    if not hvd.nccl_built():
        text = ("warning: this Horovod is built without NCCL: gradients are summed over Gloo, through the hosts' memory "
                "(build it with HOROVOD_GPU_OPERATIONS=NCCL)")  # fmt: skip
    print(text, file=sys.stderr, flush=True)
