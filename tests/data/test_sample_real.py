"""What the built-in sample is worth: a network that saw only drawn garments meets real ones."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data.sample import draw_sample

FLOOR = 0.68  # a few points under what was measured; chance is 0.10
KERAS_HOMES = (
    Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")),
    Path(__file__).parents[3] / "shared" / "keras",
)


def read_idx(path, header_bytes):
    with gzip.open(path) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header_bytes)


@pytest.fixture(scope="module")
def real_test():
    for home in KERAS_HOMES:
        folder = home / "datasets" / "fashion-mnist"
        if (folder / "t10k-images-idx3-ubyte.gz").exists():
            pixels = read_idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784)
            return pixels, read_idx(folder / "t10k-labels-idx1-ubyte.gz", 8)
    pytest.skip(f"no official Fashion-MNIST test files under {' or '.join(map(str, KERAS_HOMES))}")


@pytest.mark.slow
@pytest.mark.real
def test_a_network_trained_on_the_sample_recognises_real_garments(real_test):
    import keras
    from keras import layers

    def pictures(pixels):
        return pixels.reshape(-1, 28, 28, 1).astype(np.float32) / 255

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    pixels, labels, drawn_pixels, drawn_labels = draw_sample(seed=0)
    network.fit(pictures(pixels), labels, batch_size=64, epochs=3, verbose=0)

    def accuracy(pixels, labels):
        guesses = network.predict(pictures(pixels), batch_size=500, verbose=0).argmax(axis=1)
        return (guesses == labels).mean()

    on_real, on_drawn = accuracy(*real_test), accuracy(drawn_pixels, drawn_labels)
    print(f"\ntrained on the sample: {on_real:.4f} of {len(real_test[1])} real test images right")
    print(f"and {on_drawn:.4f} of {len(drawn_labels)} drawn test images")
    assert on_real >= FLOOR
