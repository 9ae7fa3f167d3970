"""The Python API: `fmnist_tf.train`, `fmnist_tf.load_run` and `fmnist_tf.Run`.

Importing it imports neither TensorFlow nor pandas. N images, K classes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fmnist_tf.errors import UsageError

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from numpy.typing import ArrayLike

    from fmnist_tf.pipeline.saved_run import SavedRun
    from fmnist_tf.results.evaluation import Evaluation

    Data = str | Path | tuple[ArrayLike, ArrayLike]
    """A file or folder as `--data` takes it; or images (N, 28, 28) or (N, 784) uint8, 0 the
    background, and their N labels (numbers or texts)."""


def train(
    data: Data | None = None,
    *,
    test: Data | None = None,
    phase: str | None = None,
    runs_dir: str | Path = "runs",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train a classifier, test it once, and return its complete run.

    This is what `python -m fmnist_tf.train` does. A signal (Ctrl-C, the stop button of a notebook)
    is obeyed after the step in work and a checkpoint; `train(resume=...)` continues then.

    Args:
        data: images and labels that train and validate. None: the CSVs in data/, else official
            Fashion-MNIST. Arrays are stored in RUNS_DIR/.cache/arrays, for later commands.
        test: labelled images that are classified once, at the end; None: those that belong to
            `data`, else 15 % of them.
        phase: "frozen" (the default), "finetune" or "scratch".
        runs_dir: the folder of runs.
        quiet: print warnings only.
        **settings: named as the flags of `python -m fmnist_tf.train`, with _ for -: `backbone`,
            `epochs`, `lr`, `no_test`, ...; also `recipe`, `run`, `from_run`, `resume`,
            `accept_changes`, `checkpoint_seconds`, `wandb`, `wandb_system` and `tensorboard`.

    Raises:
        fmnist_tf.errors.FmnistError: a setting or the data are invalid; its text says what was
            expected and found. Its subclasses are in `fmnist_tf.errors`.
        OSError: the disk is full or fails.
    """
    from fmnist_tf.cli.parser import runs_dir_words
    from fmnist_tf.pipeline.resolve import Request
    from fmnist_tf.pipeline.run import launch
    from fmnist_tf.settings.flags import read_value, setting_names, to_arguments
    from fmnist_tf.settings.types import SettingError, check_names

    if settings.pop("no_test", False):
        settings["limit_test"] = 0
    if "lr" in settings:
        settings["learning_rate"] = settings.pop("lr")
    of_request = {field.name for field in fields(Request)} - {"given", "runs_dir"}
    check_names(settings, [*setting_names(), *sorted(of_request)], "argument", "train()")
    given = {**_name_data(data, test, Path(runs_dir)), "phase": phase}
    given |= {name: value for name, value in settings.items() if name not in of_request}
    own = {name: settings[name] for name in sorted(of_request) if settings.get(name) is not None}
    own |= {name: str(own[name]) for name in ("recipe", "from_run", "resume") if name in own}
    try:
        given = {
            name: read_value(name, value) for name, value in given.items() if value is not None
        }
        words = [*to_arguments({**given, **own}), *runs_dir_words(Path(runs_dir))]
        with _working(quiet):
            directory, _ = launch(Request(given, Path(runs_dir), **own), words)
    except SettingError as error:
        raise (error.in_file("train()") if error.name in given else error) from None
    return load_run(directory.path, quiet=quiet)


def load_run(run: str | Path, *, runs_dir: str | Path = "runs", quiet: bool = False) -> Run:
    """Return a run by its name in `runs_dir`, or by its folder.

    Args:
        run: a complete run; or one that was stopped, of which the best epoch so far is used.
        runs_dir: the folder of runs.
        quiet: let its methods print warnings only.

    Raises:
        UsageError: there is no such run, or a file of it was changed.
    """
    from fmnist_tf.pipeline.saved_run import open_run

    return Run(open_run(str(run), Path(runs_dir)), quiet=quiet)


class Run:
    """A trained classifier and everything that was measured of it.

    Attributes:
        path: its folder.
        class_names: K names, by label.
        settings: every setting, by name.
    """

    def __init__(self, saved: SavedRun, *, quiet: bool = False) -> None:
        self._saved, self._quiet = saved, quiet
        self.path: Path = saved.directory.path
        self.class_names: tuple[str, ...] = saved.class_names
        self.settings: Mapping[str, Any] = saved.config.to_json()

    def __repr__(self) -> str:
        return f"load_run({str(self.path)!r})"

    @property
    def test(self) -> Evaluation:
        """Counts, accuracy, loss and interval on the test images.

        Raises:
            UsageError: the run was stopped before its test, or trained with `limit_test=0`.
        """
        from fmnist_tf.results.evaluation import Evaluation

        if not self._saved.directory.is_complete:
            raise UsageError(f"{self.path}: expected a complete run; {self._saved.caveats[-1]}")
        figures = self._saved.directory.read_json("evaluation.json")["test"]
        if figures is None:
            raise UsageError(f"{self.path} was not tested (limit_test=0); its evaluate() tests it")
        return Evaluation.from_json(figures)

    @property
    def accuracy(self) -> float:
        """Fraction of the test images that are classified correctly, 0..1; raises as `test`."""
        return self.test.accuracy

    @property
    def confusion(self) -> pd.DataFrame:
        """Counts of test images, (K, K): a row for each true class; raises as `test`."""
        import pandas as pd

        names = list(self.class_names)
        return pd.DataFrame(self.test.confusion, index=names, columns=names)

    @property
    def history(self) -> pd.DataFrame:
        """A row for each epoch; the columns are those of history.csv."""
        import pandas as pd

        return pd.DataFrame([vars(row) for row in self._saved.history]).set_index("epoch")

    @property
    def model(self) -> keras.Model:
        """The plain Keras model, (N, 28, 28) uint8 -> (N, K) float32 probabilities.

        It is the network as trained; `predict` divides its logits by the run's temperature, which
        changes no prediction (see `results.temperature`).
        """
        return self._saved.model

    def finetune(self, **settings: Any) -> Run:
        """Unfreeze the deepest stage, or `unfreeze`, train on, and return the new run.

        Args:
            **settings: as those of `train`.
        """
        return train(
            **{"runs_dir": self._saved.directory.runs_dir, "quiet": self._quiet, **settings},
            phase="finetune",
            from_run=self.path,
        )

    def predict(self, images: str | Path | ArrayLike) -> pd.DataFrame:
        """Return what the images show, a row for each.

        Args:
            images: a picture; images in any form that `train` reads, or a pattern; or an array
                (N, 28, 28), (28, 28) or (N, 784) of 0..255, 0 the background.

        Returns:
            Columns `prediction` (a class name), `probability` (of it, 0..1), and a column for each
            class with its probability.

        Raises:
            DataError: the file or array holds no such images.
        """
        import numpy as np
        import pandas as pd

        from fmnist_tf.cli.terminal import progress_bar
        from fmnist_tf.data.arrays import as_pixels
        from fmnist_tf.data.images import JoinedRows, PixelRows
        from fmnist_tf.model.inference import run_all
        from fmnist_tf.pipeline.run_data import read_inputs

        with _working(self._quiet):
            if isinstance(images, (str, Path)):
                inputs = read_inputs(self._saved, Path(images))
                pixels: PixelRows = JoinedRows([source.pixels for source in inputs])
            else:
                array = np.asarray(images)
                pixels, _ = as_pixels("images", array[None] if array.shape == (28, 28) else array)
            run_batches = self._saved.run_scaled
            with progress_bar("predict", "image") as show:
                (probabilities,) = run_all(run_batches, pixels, show)
        best = probabilities.argmax(axis=1)
        table = pd.DataFrame(
            {
                "prediction": np.array(self.class_names, object)[best],
                "probability": probabilities.max(axis=1),
            }
        )
        return table.join(pd.DataFrame(probabilities, columns=list(self.class_names)))

    def evaluate(
        self,
        data: Data | None = None,
        *,
        labels: str | Path | None = None,
        label_column: str | None = None,
    ) -> Evaluation:
        """Measure the run on labelled images.

        Args:
            data: as in `train`; None: the run's own test images.
            labels: file of the labels, if `data` is a file without.
            label_column: name, number from 1, first or last; None: the run's, else found.

        Raises:
            DataError: the images are invalid, or their labels are not the run's.
        """
        from fmnist_tf.data.arrays import save_labelled
        from fmnist_tf.pipeline.run_data import evaluate_run

        with _working(self._quiet), TemporaryDirectory() as folder:
            if isinstance(data, tuple):
                data, labels = save_labelled(Path(folder), "", *data)
            path, labels_path = (None if p is None else str(p) for p in (data, labels))
            return evaluate_run(self._saved, path, label_column, labels_path)[1]

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page of the run, and return its path (default: report.html in the run).

        Of a stopped run it shows the training so far.
        """
        from fmnist_tf.pipeline.saved_run import write_page
        from fmnist_tf.reporting.record import REPORT

        path = self._saved.directory.file(REPORT) if out is None else Path(out)
        with _working(self._quiet):
            write_page(self._saved.directory, path)
        return path

    def export(self, format: str, out: str | Path | None = None) -> Path:
        """Convert the model, compare the result with it, and return the folder written.

        Args:
            format: "saved_model", "litert" or "onnx".
            out: the folder to create (default: export/FORMAT in the run).

        Raises:
            UsageError: a package that ONNX needs is not installed, or there is no such format.
            RunExistsError: the folder exists.
        """
        from fmnist_tf.pipeline.export import export_run

        with _working(self._quiet):
            return export_run(self._saved, format, None if out is None else Path(out))[0]


def _name_data(data: Data | None, test: Data | None, runs_dir: Path) -> dict[str, Any]:
    """Return the settings that name the data; arrays are stored under their digest first."""
    from fmnist_tf.data.arrays import save_labelled

    settings: dict[str, Any] = {}
    for name, part, value in (("data", "train", data), ("test_data", "test", test)):
        if isinstance(value, tuple):
            value, _ = save_labelled(runs_dir / ".cache" / "arrays", part, *value)
        settings[name] = None if value is None else str(value)
    return settings


@contextmanager
def _working(quiet: bool) -> Iterator[None]:
    """Let lines, progress bars and signals inside be as a Python program expects them."""
    from fmnist_tf.cli import terminal
    from fmnist_tf.system import signals

    terminal.set_quiet(quiet)
    in_main = threading.current_thread() is threading.main_thread()  # others get no signals
    try:
        with signals.listening() if in_main else nullcontext():
            yield
    except signals.StoppedError as error:
        if error.exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt(*error.args) from error
        raise SystemExit(error.exit_code) from error
    finally:
        terminal.set_quiet(False)
