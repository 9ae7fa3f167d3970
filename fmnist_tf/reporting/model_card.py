"""The model card of a run, README.md, under the headings of Hugging Face's template.

Headings: https://huggingface.co/docs/hub/model-card-annotated.
"""

from __future__ import annotations

import json
import re

import numpy as np
from markupsafe import Markup

from fmnist_tf.errors import printable
from fmnist_tf.reporting.render import make_environment
from fmnist_tf.results.analysis import rank_confusions, score_classes
from fmnist_tf.results.provenance import find_caveats
from fmnist_tf.results.rundir import RunDir

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_model_card(run: RunDir) -> None:
    """Write README.md into the run directory.

    Raises:
        UsageError: config.json, labels.json, evaluation.json or provenance.json is missing.
    """
    card = make_environment(finalize=escape_markdown, keep_trailing_newline=True)
    card.filters |= {
        "code": lambda text: Markup(printable(str(text), 1000).replace("`", "'")),
        "yaml": lambda value: Markup(json.dumps(value)),
        "count": lambda number: f"{number:,}",
        "fixed": _format_fixed,
    }
    config, labels, evaluation, provenance = (
        run.read_json(f"{name}.json") for name in ("config", "labels", "evaluation", "provenance")
    )
    split = "test" if evaluation["test"] else "validation"
    tested = evaluation["test"] or evaluation["val"]
    confusion = np.array(tested["confusion"])
    kinds = provenance["data"]["kind"], provenance["weights"]["kind"]
    # The sample's own warning is among the caveats.
    warnings = [text for text in provenance["data"]["warnings"] if not text.startswith("WARNING")]
    text = card.get_template("modelcard.md.jinja").render(
        name=run.path.name,
        config=config,
        names=[labels[str(index)] for index in range(len(labels))],
        evaluation=evaluation,
        split=split,
        tested=tested,
        provenance=provenance,
        scores=score_classes(confusion),
        confused=rank_confusions(confusion, 3),
        notes=[*find_caveats(*kinds, config["phase"]), *warnings],
    )
    run.write_text("README.md", text)


def escape_markdown(value: object) -> str:
    """Return text that Markdown shows unchanged, on one line, at most 200 characters of it.

    Markup, which the filters `code` and `yaml` return, stays as it is.
    """
    if isinstance(value, Markup):
        return value
    return _MARKDOWN.sub(r"\\\1", printable(str(value), 200))


def _format_fixed(number: float, digits: int = 4) -> str:
    return f"{number:.{digits}f}"
