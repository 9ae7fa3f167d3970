"""Turn an ImageNet network into a classifier of 28x28 grey images read from CSV.

Importing the package has no effect and imports nothing, TensorFlow least of all.
"""

__version__ = "0.1.0"
