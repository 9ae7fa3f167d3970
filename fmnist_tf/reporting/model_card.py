"""The model card of a run, README.md, under the headings of Hugging Face's template.

Headings: https://huggingface.co/docs/hub/model-card-annotated.
"""

from __future__ import annotations

import json
import re

from markupsafe import Markup

from fmnist_tf.errors import printable
from fmnist_tf.reporting.record import RunRecord
from fmnist_tf.reporting.render import make_environment
from fmnist_tf.results.analysis import rank_confusions, score_classes
from fmnist_tf.results.rundir import RunDir

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_model_card(run: RunDir) -> None:
    """Write README.md into the run directory.

    Raises:
        UsageError: a file is missing or damaged.
    """
    card = make_environment(finalize=escape_markdown, keep_trailing_newline=True)
    card.filters |= {
        "code": lambda text: Markup(printable(str(text), 1000).replace("`", "'")),
        "yaml": lambda value: Markup(json.dumps(value)),
        "fixed": lambda number, digits=4: f"{number:.{digits}f}",
    }
    record = RunRecord(run)
    # The sample's own warning is among the caveats.
    warnings = [w for w in record.provenance["data"]["warnings"] if not w.startswith("WARNING")]
    text = card.get_template("modelcard.md.jinja").render(
        name=record.name,
        config=record.config,
        names=list(record.label_map.values()),
        evaluation=record.evaluation,
        split="test" if record.is_tested else "validation",
        tested=record.evaluation["test" if record.is_tested else "val"],
        provenance=record.provenance,
        scores=score_classes(record.confusion),
        confused=rank_confusions(record.confusion, 3),
        notes=[*record.caveats, *warnings],
    )
    run.write_text("README.md", text)


def escape_markdown(value: object) -> str:
    """Return text that Markdown shows unchanged, on one line, at most 200 characters of it.

    Markup, which the filters `code` and `yaml` return, stays as it is.
    """
    if isinstance(value, Markup):
        return value
    return _MARKDOWN.sub(r"\\\1", printable(str(value), 200))
