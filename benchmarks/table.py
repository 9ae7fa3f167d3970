"""The result as text for a terminal: one table for each stage of each network and side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from benchmarks.plan import N_PHASE, N_TRAIN, N_VAL, PHASE_EPOCHS

MIN_WIDTH = 79
COLUMNS = "{:<23}{:>9}{:>6}{:>8}{:>7}{:>8}{:>7}"
TITLES = {
    "feature_pass": "28x28 uint8 to backbone features",
    "frozen_epoch": "{} head on the frozen backbone",
    "finetune_epoch": "{} head and the deepest stage",
    "frozen_phase": f"{{}} head, {PHASE_EPOCHS} epochs of {N_TRAIN:,} + {N_VAL:,} images, composed",
}


def format_result(result: Mapping[str, Any], width: int) -> str:
    """Return the whole result, no line wider than `width` or `MIN_WIDTH`."""
    width = max(width, MIN_WIDTH)
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"{machine['processor']}, {machine['cores']} CPUs, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {', '.join(machine['gpus']) or 'no GPU'}",
        f"{settings['rounds']} alternating rounds of {settings['round_seconds']:g} s",
    ]
    of_table = itemgetter("backbone", "image_size", "stage", "head")
    for (backbone, side, stage, head), group in groupby(result["rows"], of_table):
        rows = list(group)
        batch = f", batch {rows[0]['batch_size']}" if rows[0]["batch_size"] else ""
        title = f"{backbone}, {side} pixels, {stage}: {TITLES[stage].format(head)}{batch}"
        lines += ["", title, *_format_rows(rows)]
    lines += ["", *_write_notes(result)]
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
        if len(line) > width
        else line
        for line in lines
    )


def _format_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield COLUMNS.format("", "images/s", "+-%", "ratio", "MB", "bound%", "cosine")
    for row in rows:
        name = row["system"] + (f" ({row['precision']})" if row["system"] == "ours" else "")
        if row["reason"] is not None:
            yield f"{name:<23} not measured: {row['reason']}"
            continue
        rate, rounds, cosine = row["images_per_second"], row["rounds"], row["cosine"]
        yield COLUMNS.format(
            name,
            _figure(rate),
            f"{50 * (max(rounds) - min(rounds)) / rate:.0f}" if rounds else "",
            f"{_figure(row['ratio'])}x" if row["ratio"] else "",
            f"{row['peak_mb']:.0f}",
            "?" if row["percent_of_bound"] is None else f"{row['percent_of_bound']:.1f}",
            "" if cosine is None else f"{int(cosine * 1e3) / 1e3:g}",  # never rounded up to 1
        ).rstrip()


def _write_notes(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the columns mean on this machine, and what the tables leave out."""
    machine = result["machine"]
    bounds = machine["flop_per_second_bound"].items()
    known = ", ".join(f"{name} {bound / 1e9:,.0f} GFLOP/s" for name, bound in bounds if bound)
    yield (
        "images/s: median of the rounds; +-%: half their spread; ratio: to keras_float32; MB: peak "
        f"memory; bound%: of what the processor could compute ({known or 'not known'}); cosine: "
        "the lowest over images, to keras_float32's outputs; frozen_phase: ours computes the "
        f"features once, then {PHASE_EPOCHS} epochs on them."
    )
    if machine["precision"] != "bfloat16":
        yield f"No bfloat16 systems: {machine['precision_why']}."
    if machine["gpus"]:
        yield "OpenVINO computes on the processor, the others on the GPU."
    for row in result["rows"]:
        size = (row["stored_bytes_per_image"] or 0) * N_PHASE
        if row["stage"] != "feature_pass" and size > machine["memory_bytes"] / 2:
            yield (
                f"{row['stage']}, {row['head']} head: ours caches {size / 1e9:.3g} GB for "
                f"{N_PHASE:,} images, more than memory holds; reading them is NOT in the rate."
            )


def _figure(value: float) -> str:
    """Return a number with three significant digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
