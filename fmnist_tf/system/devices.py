"""What TensorFlow computes on."""

from __future__ import annotations


def describe_devices() -> list[str]:
    """Return the GPUs that TensorFlow sees, e.g. `GPU: NVIDIA H200`, or else `CPU`."""
    import tensorflow as tf

    described = []
    for device in tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("CPU"):
        name = tf.config.experimental.get_device_details(device).get("device_name")
        described.append(f"{device.device_type}: {name}" if name else device.device_type)
    return described
