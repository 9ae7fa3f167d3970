"""Turn an ImageNet network into a classifier of 28x28 grey images read from CSV.

    run = fmnist_tf.train("my.csv", phase="frozen", epochs=3)
    run = run.finetune(unfreeze="conv5")
    run.predict("shirt.jpg")

Importing the package imports neither TensorFlow nor pandas.
"""

from fmnist_tf.api import Run, load_run, train

__all__ = ["Run", "load_run", "train"]
__version__ = "0.1.0"
