"""The result as text for a terminal.

In: the result as JSON values. Out: one table a stage and what must be known to read them, no line
wider than asked for. This module must not know how anything was measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from fmnist_tf.benchmark.plan import N_PHASE, N_TRAIN, N_VAL, PHASE_EPOCHS

_COLUMNS = "{:<21}{:>9}{:>6}{:>8}{:>10}{:>7}{:>7}{:>7}{:>5}"
_NAMES = ("", "images/s", "+-%", "ratio", f"{N_PHASE:,}", "MB", "bound%", "best%", "cos")
NOISY = 0.2  # spread of the rounds by which other work on the machine shows
_TITLES = {
    "feature_pass": "28x28 uint8 to features at {side} pixels",
    "frozen_epoch": "{head} head on the frozen backbone",
    "finetune_epoch": "{head} head and the deepest stage",
    "frozen_phase": f"{{head}} head, {PHASE_EPOCHS} epochs of {N_TRAIN:,} + {N_VAL:,} images, "
    "composed",
}


def format_result(result: Mapping[str, Any], width: int) -> str:
    """Return the whole result, lines at most `width` wide; 79 at least."""
    width = max(width, 79)
    machine, settings = result["machine"], result["settings"]
    parts = [_format_machine(machine, settings, width)]
    tables: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        tables.setdefault((row["stage"], row["head"]), []).append(row)
    for (stage, head), rows in tables.items():
        parts.append(_format_table(stage, head, rows, settings, width))
    for lines in (_write_notes(result), _write_conclusion(result["rows"])):
        parts.append("\n".join(_wrap(line, width, "  ") for line in lines))
    return "\n\n".join(filter(None, parts))


def _write_notes(result: Mapping[str, Any]) -> list[str]:
    """Return what the columns mean on this machine, and what is not in the tables."""
    machine, settings, rows = result["machine"], result["settings"], result["rows"]
    rules: dict[str, str] = {}
    for row in rows:
        if row["stage"] == "frozen_phase":
            rules.setdefault(row["rule"], row["system"])
    notes = [
        "images/s: median of the rounds; +-%: half their spread. ratio: to keras_float32 in the "
        "same table, by images/s.",
        f"{N_PHASE:,}: time for so many images; {PHASE_EPOCHS} epochs: for the whole phase. "
        "MB: largest resident memory of the system's own process.",
        *_write_bounds(machine),
        *(f"frozen_phase, {system}: {rule}." for rule, system in rules.items()),
        "cos: least cosine of the features to those of keras_float32 on the same images and "
        "weights, mean image subtracted; with a head, of the logarithms of the probabilities.",
    ]
    if machine["precision"] != "bfloat16":
        notes.append(
            f"LEFT OUT: all bfloat16 systems ({machine['precision_why']}). OpenVINO and "
            "torch.compile are measured in float32."
        )
    if machine["gpus"]:
        notes.append("OpenVINO computes on the processor, the others on the GPU.")
    stored = {
        f"the {row['head']} head" if row["stage"] == "frozen_phase" else "the deepest stage": (
            row["stored_bytes_an_image"] * N_PHASE
        )
        for row in rows
        if row["stage"] in ("frozen_phase", "finetune_epoch") and row["stored_bytes_an_image"]
    }
    for what, n_bytes in stored.items():
        note = f"ours stores {n_bytes / 1e9:.3g} GB for {what} at {N_PHASE:,} images"
        if n_bytes > machine["memory_bytes"] / 2:
            note += (
                "; this memory does not hold that, so each epoch also reads it from disk, which "
                "is NOT in its rate"
            )
        notes.append(f"{note}.")
    if any(row["stage"] == "finetune_epoch" for row in rows):
        notes.append(
            "finetune_epoch, ours: without what lies below the deepest stage, computed once for "
            "all epochs; feature_pass computes that and the deepest stage."
        )
    noisy = sum(row["spread"] > NOISY for row in rows if row["spread"] is not None)
    if noisy:
        notes.append(
            f"NOISY: the rounds of {noisy} rows differ by more than {NOISY:.0%}; does the machine "
            "do other work?"
        )
    if settings["quick"]:
        notes.append(
            f"QUICK: at {settings['image_size']} pixels, few short rounds, without the gap head. "
            "Leave --quick out for the rest; ratios differ from side to side."
        )
    return notes


def _write_conclusion(rows: list[Mapping[str, Any]]) -> list[str]:
    """Return a line for each head: the frozen phase in ours and in plain Keras."""
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["stage"] == "frozen_phase" and row["reason"] is None:
            phases.setdefault(row["head"], []).append(row)
    lines = []
    for head, (ours, *others) in phases.items():
        if ours["system"] != "ours" or not others:
            continue
        beside = ", ".join(
            f"{row['system']} {format_seconds(row['seconds'])} "
            f"({_figure(row['seconds'] / ours['seconds'])}x)"
            for row in others
        )
        time = format_seconds(ours["seconds"])
        lines.append(f"frozen phase, {head} head: ours {time}, {beside}")
    return lines


def _write_bounds(machine: Mapping[str, Any]) -> list[str]:
    arithmetic, reached = (machine[f"flop_per_second_{name}"] for name in ("arithmetic", "reached"))
    formulas = [
        f"{precision} {machine['physical_cores']} physical cores x {machine['clock_mhz']:.0f} MHz "
        f"x {machine['flop_per_cycle_and_core'][precision]} FLOP a cycle = {rate / 1e9:,.0f} "
        "GFLOP/s"
        for precision, rate in arithmetic.items()
        if rate
    ]
    products = [f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in reached.items() if rate]
    return [
        "bound%: of what arithmetic allows: "
        + ("; ".join(formulas) if formulas else "not known for this machine")
        + (". A virtual machine tells its nominal clock, so this can pass 100." * bool(formulas)),
        "best%: of the fastest large matrix product or convolution in this run: "
        + ("; ".join(products) if products else "none was measured")
        + ".",
    ]


def _format_machine(machine: Mapping[str, Any], settings: Mapping[str, Any], width: int) -> str:
    kind = "QUICK run: few short rounds" if settings["quick"] else "full run"
    lines = [
        f"{machine['processor']}, {machine['cores']} CPUs, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {', '.join(machine['gpus']) or 'no GPU'}",
        f"{kind}, side {settings['image_size']} pixels, {settings['rounds']} rounds, "
        "systems alternating",
    ]
    return "\n".join(_wrap(line, width) for line in lines)


def _format_table(
    stage: str,
    head: str | None,
    rows: list[Mapping[str, Any]],
    settings: Mapping[str, Any],
    width: int,
) -> str:
    title = _TITLES[stage].format(side=settings["image_size"], head=head)
    batches = sorted({row["batch_size"] for row in rows if row["batch_size"]})
    if batches:
        title += f", batch {' and '.join(map(str, batches))}"
    names = list(_NAMES)
    if stage == "frozen_phase":
        names[_NAMES.index(f"{N_PHASE:,}")] = f"{PHASE_EPOCHS} epochs"
    lines = [_wrap(f"{stage}: {title}", width), _COLUMNS.format(*names)]
    for row in rows:
        name = row["system"]
        if name == "ours" and row["precision"]:
            name += f" ({row['precision']})"
        if row["reason"] is not None:
            lines.append(_wrap(f"{name:<21} not measured: {row['reason']}", width, " " * 22))
            continue
        lines.append(
            _COLUMNS.format(
                name,
                _figure(row["images_per_second"]),
                "" if row["spread"] is None else f"{50 * row['spread']:.0f}",
                "" if row["ratio"] is None else f"{_figure(row['ratio'])}x",
                format_seconds(row["seconds"]),
                f"{row['peak_mb']:.0f}",
                _percent(row["percent_of_bound"]),
                _percent(row["percent_of_reached"]),
                "" if row["cosine"] is None else _cosine(row["cosine"]),
            ).rstrip()
        )
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _figure(value: float) -> str:
    """Return three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _cosine(value: float) -> str:
    """Return three digits that never round a difference away."""
    return "1" if value >= 1 - 1e-6 else f".{min(int(value * 1000), 999):03d}"


def _wrap(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_on_hyphens=False, drop_whitespace=True
    )
