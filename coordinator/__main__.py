"""``edge-coordinator``: serve a federation, check its configuration, look at its rounds, export its model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from edge_sdk import __version__
from edge_sdk.errors import (
    BundleError,
    CompileError,
    ConfigurationError,
    ConnectionRefused,
    ConnectionUnavailable,
    EdgeFedError,
    StateError,
    VersionError,
)

__all__ = ["EXIT_CODES", "app", "exit_code", "main"]

EXIT_CODES: Final[tuple[tuple[tuple[type[EdgeFedError], ...], int], ...]] = (
    ((ConfigurationError, CompileError, BundleError, VersionError), 2),
    ((ConnectionRefused, ConnectionUnavailable), 3),
    ((StateError,), 4),
)
"""What each kind of error ends with; any other one with 1."""

app = typer.Typer(
    name="edge-coordinator",
    help="The coordinator of a federation: rounds over MQTT, from one federation.toml.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 configuration, 3 broker, 4 state or database.",
)

codec_app = typer.Typer(help="What codecs make of a model's updates.", no_args_is_help=True)
app.add_typer(codec_app, name="codec")

ConfigFile = Annotated[Path, typer.Argument(help="The configuration, federation.toml.", metavar="FEDERATION.TOML")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
TaskName = Annotated[str | None, typer.Option(help="Of this task, where the configuration has several.")]


def main() -> None:
    """The entry point: errors that we raise on purpose become one clear line and an exit code."""
    try:
        app()
    except EdgeFedError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code(error))


def exit_code(error: EdgeFedError) -> int:
    """The process's exit code for an error."""
    return next((code for kinds, code in EXIT_CODES if isinstance(error, kinds)), 1)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"edge-coordinator {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def serve(
    config: ConfigFile,
    stay: Annotated[bool, typer.Option("--stay", help="Go on answering devices after the end, until stopped.")] = False,
    linger: Annotated[
        float, typer.Option(min=0.0, help="Seconds for which devices are still answered after the end.")
    ] = 10.0,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the federation until it is finished, or until SIGTERM or SIGINT; the next start goes on where it was."""
    from coordinator.cli.serve import serve as run

    reason = run(config, linger_seconds=None if stay else linger, log_level=log_level, environment=os.environ)
    typer.echo(f"finished: {reason}" if reason else "stopped; start again to go on")


@app.command()
def check(config: ConfigFile, as_json: AsJson = False) -> None:
    """Check configuration, files, model, held-out data, database and broker; nothing is changed."""
    from coordinator.cli.check import run_checks
    from coordinator.cli.show import print_checks

    outcomes = run_checks(config)
    if as_json:
        _print_json([outcome.as_json() for outcome in outcomes])
    else:
        print_checks(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed and failed[0].error is not None:
        raise typer.Exit(exit_code(failed[0].error))


@app.command()
def status(
    config: ConfigFile,
    as_json: AsJson = False,
    task: TaskName = None,
    devices: Annotated[int, typer.Option(min=0, help="How many devices to list, those seen last first.")] = 10,
) -> None:
    """Show the round, tickets, devices, counters and bytes; from the database, also while it is served."""
    from coordinator.cli.show import print_status
    from coordinator.config import load_config
    from coordinator.reports import status_report

    report = status_report(load_config(config, task), devices_max=devices)
    if as_json:
        _print_json(report)
    else:
        print_status(report)


@app.command()
def rounds(
    config: ConfigFile,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead.")] = False,
    task: TaskName = None,
    last: Annotated[int, typer.Option(min=0, help="Only so many of the newest rounds; 0 for all.")] = 0,
) -> None:
    """List the rounds that have ended: who reported, bytes, loss, metric, seconds."""
    from coordinator.cli.show import print_rounds, rounds_csv
    from coordinator.config import load_config
    from coordinator.reports import rounds_report

    rows = rounds_report(load_config(config, task), last or sys.maxsize)
    if as_json:
        _print_json(rows)
    elif as_csv:
        typer.echo(rounds_csv(rows), nl=False)
    else:
        print_rounds(rows)


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Of each run a federation.toml, a database, or a CSV of rounds.", metavar="RUN..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write: .png, .svg or .pdf.")],
    metric: Annotated[str | None, typer.Option(help="The column to draw; the model's metric by default.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="What to call a run; repeated, one for each.")] = None,
    title: Annotated[str, typer.Option(help="Stands above.")] = "",
    task: TaskName = None,
) -> None:
    """Draw learning curves and bytes of one or several runs: against rounds, and against all bytes, up and down."""
    from coordinator.cli.plot import plot_runs

    for line in plot_runs(runs, out, metric=metric, task=task, names=name or (), title=title):
        typer.echo(line)


@app.command()
def export(
    config: ConfigFile,
    onnx: Annotated[Path | None, typer.Option(help="Write the model with its weights as ONNX.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Write a bundle, to go on from these weights elsewhere.")] = None,
    int8: Annotated[Path | None, typer.Option(help="Write a quantised ONNX model, and score it.")] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="Of this round; by default the last one, or the last good one.")
    ] = None,
    task: TaskName = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model, and prove it by running what was written."""
    from coordinator.cli.export import export_model
    from coordinator.config import load_config

    if onnx is None and bundle is None and int8 is None:
        raise ConfigurationError("export: says nowhere to write to; give --onnx FILE, --int8 FILE or --bundle FILE")
    report = export_model(load_config(config, task), onnx=onnx, bundle=bundle, int8=int8, round_number=round_number)
    if as_json:
        _print_json(report)
    else:
        for name, value in report.items():
            typer.echo(f"{name.replace('_', ' ')}: {value}")


@app.command(name="compile")
def compile_bundle(
    model: Annotated[Path, typer.Argument(help="An ONNX inference model.", metavar="MODEL.ONNX")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write, for model.bundle.")],
    loss: Annotated[str, typer.Option(help="What is minimised.")] = "softmax_cross_entropy",
    optimizer: Annotated[str, typer.Option(help="Optimiser on the devices.")] = "sgd",
    train: Annotated[
        list[str] | None, typer.Option(help="Train only parameters of this pattern, 'fc*'; may be repeated.")
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option("--freeze", "--frozen", help="Leave these as they are; may be repeated.")
    ] = None,
    lora: Annotated[
        tuple[str, str] | None, typer.Option(help="Train low-rank adapters only: rank=8 'layers.*'.")
    ] = None,
    proximal: Annotated[bool, typer.Option("--proximal", help="Compile FedProx's proximal term in.")] = False,
    weight_decay: Annotated[bool, typer.Option("--weight-decay", help="Compile weight decay in.")] = False,
    clip: Annotated[bool, typer.Option("--clip-gradients", help="Compile clipping by global norm in.")] = False,
    label_smoothing: Annotated[bool, typer.Option("--label-smoothing", help="Compile label smoothing in.")] = False,
    class_weight: Annotated[
        list[float] | None, typer.Option(help="Factor of a class; repeated, one for each class.")
    ] = None,
    normalise: Annotated[
        str, typer.Option(help="Take raw units, with mean and scale of all devices (federated) or of each (local).")
    ] = "none",
    normalise_axis: Annotated[
        int | None, typer.Option(help="The input's dimension that counts features; told from the model.")
    ] = None,
    normalise_clip: Annotated[float, typer.Option(help="Raw values beyond plus and minus this count as this.")] = 1e6,
    normalise_target: Annotated[
        bool | None, typer.Option(help="Normalise the target of a regression, too; by default where the input is.")
    ] = None,
    missing: Annotated[
        str, typer.Option(help="What becomes of NaN: refuse, or mean, the feature's average.")
    ] = "refuse",
    ignore_index: Annotated[int | None, typer.Option(help="A label that is not counted.")] = None,
    class_axis: Annotated[int | None, typer.Option(help="The output's axis of classes.")] = None,
    mask: Annotated[
        str, typer.Option(help="An input, of the model or a new one, that is 0 at positions that do not count.")
    ] = "",
    output: Annotated[str | None, typer.Option(help="The output that the loss is computed on.")] = None,
    feature: Annotated[
        list[str] | None, typer.Option(help="Name of a column of the input; repeated, in their order.")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="A feature that is a text, and its values: fuel=diesel,petrol; repeated.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="Name of a class; repeated, in their order.")] = None,
    loop: Annotated[
        bool | None, typer.Option(help="A graph of many steps in one run; by default where measuring finds it faster.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; the file's by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn an ONNX model into a bundle that devices can train, check its gradients, and say what was understood."""
    from coordinator.cli.compile import compile_file
    from coordinator.compile import LossOptions, NormaliseOptions
    from coordinator.compile.naming import ColumnNames

    if normalise == "none" and (normalise_axis is not None or missing != "refuse" or normalise_target is not None):
        raise CompileError("--normalise-axis, --normalise-target and --missing go with --normalise federated or local")
    told = None
    if normalise != "none":
        told = NormaliseOptions(normalise, normalise_axis, normalise_clip, missing, target=normalise_target)
    bundle = compile_file(
        model,
        out,
        loss=loss,
        loss_options=LossOptions(tuple(class_weight or ()), label_smoothing, ignore_index, class_axis, mask),
        optimizer=optimizer,
        proximal=proximal,
        weight_decay=weight_decay,
        clipped=clip,
        output=output,
        train=train or (),
        freeze=freeze or (),
        lora=lora,
        normalise=told,
        loop="auto" if loop is None else loop,
        name=name,
        names=ColumnNames.parse(feature or (), category or (), label or ()),
    )
    _print_bundle(bundle, out, as_json)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", metavar="MODEL.BUNDLE")], as_json: AsJson = False
) -> None:
    """Say what is in a bundle: inputs, parameters, operators, sizes, the cost of a step."""
    from edge_sdk.training.bundle import Bundle

    _print_bundle(Bundle.load(bundle), bundle, as_json)


@codec_app.command()
def report(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", metavar="MODEL.BUNDLE")],
    data: Annotated[
        Path | None, typer.Option(help="Examples, .npz or .csv; scikit-learn's digits if they fit and none are given.")
    ] = None,
    clients: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Simulated devices that share the data; 0: as --cohort, at most 10."),
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds; the last one's updates are measured.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="Passes over the local examples.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=1 << 20, help="Examples a step.")] = 32,
    learning_rate: Annotated[float | None, typer.Option(help="On the devices; the model's own by default.")] = None,
    cohort: Annotated[int, typer.Option(min=1, max=1000, help="Updates of a round: selection.goal_count.")] = 10,
    bytes_max: Annotated[
        int, typer.Option(min=0, help="Pick what learns best with frames of so many bytes an update.")
    ] = 0,
    nmse_max: Annotated[
        float, typer.Option(min=0.0, help="Pick the fewest bytes with at most this scaled NMSE of a round's mean.")
    ] = 0.0,
    progress_min: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Pick the fewest bytes that come so far; float32 comes to 1."),
    ] = 0.0,
    trial: Annotated[bool, typer.Option("--trial/--no-trial", help="Train with each codec too.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the shuffles and the codecs.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a few rounds here, show what each codec makes of the updates by tensor, and pick a setting."""
    from coordinator.cli.codec import ReportOptions, report_file
    from coordinator.cli.codec_show import print_codec_report

    options = ReportOptions(
        clients, rounds, epochs, batch_size, learning_rate, cohort, bytes_max, nmse_max, progress_min, trial, seed
    )
    found = report_file(bundle, data, options)
    if as_json:
        _print_json(found)
    else:
        print_codec_report(found)
    if found["nothing_fits"]:
        raise ConfigurationError(found["nothing_fits"])


def _print_bundle(bundle: Any, path: Path, as_json: bool) -> None:
    from coordinator.cli.compile import report_lines
    from coordinator.compile import describe

    if as_json:
        _print_json(describe(bundle))
    else:
        for line in report_lines(bundle, path):
            typer.echo(line)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
