"""The tables of ``edge-coordinator codec report``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from coordinator.cli.codec import LIMITS
from coordinator.cli.show import bytes_text, make_console, make_table

__all__ = ["auto_text", "print_codec_report"]

TENSORS_SHOWN: Final = 30
FEW_BITS: Final = """\
Fewer bits than auto takes ({:g} for rounds of {}): what their noise costs shows late in training, not in a few rounds.
See what more --rounds say."""
LEGEND: Final = """\
bytes: of an update's frames; at most: what no update exceeds. NMSE: error of one update over its energy (sparse: of
delta and residual); mean: of a round's mean; scaled: of the mean at the scale that makes it unbiased. progress: where
training through the codec comes to, as the share of the rounds after which it is there in float32; differences of 5%
are chance. limit: of eden NMSE over that of the best unbiased code (in theory); of sparse bits for each coordinate
sent, and bits of the indices over log2 C(n, k)."""


def print_codec_report(report: Mapping[str, Any]) -> None:
    """The report as tables."""
    out = make_console()
    out.print(
        f"{report['model']}: {report['parameters']} parameters, {bytes_text(4 * report['parameters'])} as float32\n"
        f"measured on round {report['rounds']} of {report['clients']} clients with {report['examples']} examples of "
        f"{report['data']} (training loss {report['loss']:.3g}, {report['engine']})\n"
        f"{_mean_text(report)}\n"
    )
    mean = f"mean of {report['averaged']}"
    rows = make_table("codec", "bytes", "smaller", "at most", "NMSE", mean, "scaled", "progress", "limit")
    for entry in report["codecs"]:
        rows.add_row(
            entry["codec"],
            f"{entry['bytes']:.0f}",
            f"{entry['ratio']:.1f}x",
            str(entry["bytes_max"]),
            f"{entry['nmse']:.3g}",
            f"{entry['cohort_nmse']:.3g}",
            "-" if entry["scaled_nmse"] is None else f"{entry['scaled_nmse']:.3g}",
            "-" if entry["progress"] is None else f"{100.0 * entry['progress']:.1f}%",
            _limit_text(entry),
        )
    out.print(rows)
    out.print(f"\n{LEGEND}\n")
    _print_tensors(out, report)
    out.print(auto_text(report))
    if report["pick"] is not None:
        why = "auto, without a budget" if not any(report[limit] for limit in LIMITS) else report["pick"]["codec"]
        out.print(f"\ntake {why}; in federation.toml:\n")
        out.print(report["pick"]["toml"], markup=False)
        if report["pick"]["bits"] is not None and report["pick"]["bits"] < report["auto"]["bits"]:
            out.print(f"\n{FEW_BITS.format(report['auto']['bits'], report['cohort'])}")


def _print_tensors(out: Console, report: Mapping[str, Any]) -> None:
    shown = _shown_codecs(report)
    rows = make_table("tensor", "elements", "energy", *(f"{name}: bytes (NMSE)" for name in shown))
    for entry in report["tensors"][:TENSORS_SHOWN]:
        energy = entry["kind"] if entry["energy"] is None else f"{100.0 * entry['energy']:.2f}%"
        costs = [_cost_text(name, entry["codecs"][name]) for name in shown]
        rows.add_row(f"{entry['name']} {entry['shape']}", str(entry["elements"]), energy, *costs)
    heads = {entry["codec"]: entry["head_bytes"] for entry in report["codecs"]}
    rows.add_row("heads of the frames", "", "", *(f"{heads[name]:.1f}" for name in shown))
    out.print(rows)
    left = len(report["tensors"]) - TENSORS_SHOWN
    out.print(f"and {left} more, see --json\n" if left > 0 else "")


def _shown_codecs(report: Mapping[str, Any]) -> list[str]:
    """Those that a rule for tensors chooses among, and what was picked."""
    names = [entry["codec"] for entry in report["codecs"]]
    picked = [report["pick"]["codec"]] if report["pick"] is not None else []
    return [name for name in names if name in ("dense", "int8", "sparse 1%", "auto", names[0], *picked)]


def _cost_text(codec: str, cost: Mapping[str, Any]) -> str:
    text = f"{cost['bytes']:.1f}"
    if codec.startswith("sparse"):
        text += f", {cost['sent']:.0f} sent"
    return text if cost["nmse"] is None else f"{text} ({cost['nmse']:.2g})"


def _limit_text(entry: Mapping[str, Any]) -> str:
    if entry["limit_ratio"] is not None:
        return f"{entry['limit_ratio']:.2f} ({entry['limit_theory']:.2f})"
    if entry["bits_per_nonzero"] is None:
        return ""
    ratio = "" if entry["index_ratio"] is None else f", {entry['index_ratio']:.2f}"
    return f"{entry['bits_per_nonzero']:.2f} bits{ratio}"


def _mean_text(report: Mapping[str, Any]) -> str:
    averaged, cohort = report["averaged"], report["cohort"]
    text = f"the mean is of {averaged} clients' updates"
    if averaged < cohort:
        text += f", not of {cohort}: of more, noise averages out further; --clients {cohort} measures that"
    return text


def auto_text(report: Mapping[str, Any]) -> str:
    """What ``auto`` takes for the measured updates, and why."""
    auto = report["auto"]
    chose = " and ".join(auto["codecs"])
    if auto["small"]:
        return f"auto takes {chose}: below 1024 elements heads and scales weigh more than bits"
    if set(auto["codecs"]) == {"sparse_rows"}:
        return f"auto takes {chose}: most rows of tables are zero in these updates, and only the others are sent"
    return (
        f"auto takes {chose}, with {auto['bits']:g} bits for rounds of {report['cohort']}: the {auto['largest']} "
        f"largest coordinates, which sparse could send for the bytes, hold {100.0 * auto['energy_share']:.1f}% of "
        "the energy; from 95% on it takes sparse"
    )
