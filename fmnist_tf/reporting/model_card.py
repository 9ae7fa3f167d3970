"""The model card: a run directory -> its README.md, under the headings of Hugging Face's template.

In: the JSON files of a run. Out: Markdown that holds what was measured or decided, and nothing that
was not. This module must not load a model or compute anything but shares.

Headings: https://huggingface.co/docs/hub/model-card-annotated.
"""

from __future__ import annotations

import json
import re

import numpy as np

from fmnist_tf.errors import printable
from fmnist_tf.results.analysis import rank_confusions, score_classes
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.results.rundir import RunDir

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_model_card(run: RunDir) -> None:
    """Write README.md into the run directory.

    Raises:
        UsageError: config.json, labels.json, evaluation.json or provenance.json is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmnist_tf.reporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown: `plain` escapes what comes from files
    )
    environment.filters |= {"plain": escape_markdown, "code": _code, "yaml": json.dumps}
    config, labels, evaluation, provenance = (
        run.read_json(name)
        for name in ("config.json", "labels.json", "evaluation.json", "provenance.json")
    )
    names = [labels[str(index)] for index in range(len(labels))]
    confusion = np.array(evaluation["test"]["confusion"])
    data = provenance["data"]
    template = environment.get_template("modelcard.md.jinja")
    run.write_text(
        "README.md",
        template.render(
            name=run.path.name,
            config=config,
            names=names,
            evaluation=evaluation,
            provenance=provenance,
            scores=score_classes(confusion),
            confused=rank_confusions(confusion, 3),
            # The box that the sample comes with is one of the caveats.
            notes=[
                *find_caveats(data["kind"], provenance["weights"]["kind"], config["phase"]),
                *(warning for warning in data["warnings"] if not warning.startswith("WARNING")),
            ],
        ),
    )


def escape_markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line, at most 200 characters of it."""
    return _MARKDOWN.sub(r"\\\1", printable(str(text), 200))


def _code(text: object) -> str:
    """Return text for between backticks."""
    return printable(str(text), 1000).replace("`", "'")
