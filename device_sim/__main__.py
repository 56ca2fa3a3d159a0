"""``edge-fleet``: a demo, a fleet against any broker, a private broker, and whole federations in virtual time."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edge_sdk import __version__
from edge_sdk.errors import ConfigurationError, ConnectionRefused, ConnectionUnavailable, EdgeFedError

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Fleets of simulated devices that run the shipped code."
)
console = Console(highlight=False)

EXIT_CODES = ((ConfigurationError, 2), (ConnectionRefused, 3), (ConnectionUnavailable, 3))


@app.command()
def demo(
    devices: Annotated[int, typer.Option(min=4, help="Devices, each with its own MQTT connection.")] = 30,
    broker: Annotated[str, typer.Option(help="auto, mosquitto or iotcore.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Draws the split, the weights and the cohorts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/demo-<time>.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Round budget.")] = 90,
    seconds: Annotated[float, typer.Option(help="Give up after so many seconds.")] = 120.0,
) -> None:
    """A private broker, a coordinator process and a fleet learn the digits in under a minute."""
    from device_sim.demo import DemoSettings, run_demo

    if broker not in ("auto", "mosquitto", "iotcore"):
        raise ConfigurationError(f"--broker: {broker!r} is not one of auto, mosquitto, iotcore")
    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    settings = DemoSettings(
        folder=folder,
        devices=devices,
        seed=seed,
        broker=broker,  # type: ignore[arg-type]
        rounds_max=rounds,
        seconds_max=seconds,
    )
    logging.getLogger("edge_sdk").setLevel(logging.ERROR)  # dropouts are part of the show
    run_demo(settings)


@app.command()
def run(
    broker: Annotated[str, typer.Option(help="mqtt://user:password@host:port")],
    federation: Annotated[str, typer.Option(help="Name of the federation.")],
    devices: Annotated[int | None, typer.Option(min=1, help="Devices; with --split natural one per group.")] = None,
    data: Annotated[
        str, typer.Option(help="digits, a file of examples as a device takes it, or a .toml with its \\[data].")
    ] = "digits",
    split: Annotated[
        str, typer.Option(help="iid, shards:<n>, dirichlet:<alpha>, dirichlet_by_class:<alpha>, natural")
    ] = "iid",
    trainer: Annotated[
        str, typer.Option(help="Your own training in place of the model's graph: package.module:Class with fit.")
    ] = "",
    train: Annotated[str, typer.Option(help="real, or replay: precomputed updates, to load a coordinator.")] = "real",
    profile: Annotated[
        str, typer.Option(help="field=value,... or a .toml file with \\[profile].")
    ] = "dropout=0,slow_share=0,slowness_spread=0",
    task: Annotated[str, typer.Option(help="Name of the task.")] = "default",
    engine: Annotated[str, typer.Option(help="auto, onnxruntime or numpy.")] = "auto",
    shape: Annotated[str, typer.Option(help="Shape of one example, e.g. 784 or 1,28,28.")] = "",
    held_out: Annotated[
        Path | None, typer.Option(help="Also write the held-out examples here: .npz, or .csv for rows of a table.")
    ] = None,
    held_out_share: Annotated[
        str, typer.Option(help="Share held out where none is marked; last:0.2 for the newest examples.")
    ] = "0.2",
    threads: Annotated[int, typer.Option(min=1, help="Training threads.")] = 1,
    prefix: Annotated[str, typer.Option(help="Device names are <prefix>-<number>.")] = "device",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="Stop after so many seconds; 0 for no limit.")] = 0.0,
    verbose: Annotated[bool, typer.Option(help="Log what each device does.")] = False,
) -> None:
    """Many devices in one process, each with its own MQTT connection, until the federation is finished."""
    from device_sim.fleet_run import FleetRun, run_fleet

    _log(verbose)
    settings = FleetRun(
        broker=broker,
        federation=federation,
        task=task,
        devices=devices,
        data=data,
        split=split,
        train=train,
        trainer=trainer,
        profile=profile,
        engine=engine,
        shape=shape,
        held_out=held_out,
        held_out_share=held_out_share,
        threads=threads,
        prefix=prefix,
        seed=seed,
        seconds=seconds,
    )
    reason = run_fleet(settings, say=lambda line: console.print(line, markup=False))
    console.print(reason, markup=False)


@app.command()
def broker(
    kind: Annotated[str, typer.Option(help="auto, mosquitto or iotcore.")] = "auto",
    directory: Annotated[Path | None, typer.Option(help="For its configuration and log.")] = None,
) -> None:
    """Starts a private broker on a random loopback port and prints its address; Ctrl-C ends it."""
    from device_sim.broker import PrivateBroker

    if kind not in ("auto", "mosquitto", "iotcore"):
        raise ConfigurationError(f"--kind: {kind!r} is not one of auto, mosquitto, iotcore")
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))
    with PrivateBroker(kind, directory) as started:  # type: ignore[arg-type]
        print(f"{started.kind} {started.url}", flush=True)
        while not stopped:
            started.check()
            time.sleep(0.1)


@app.command()
def scenario(
    devices: Annotated[int, typer.Option(min=1)] = 20,
    rounds: Annotated[int, typer.Option(min=1)] = 4,
    goal: Annotated[int | None, typer.Option(min=1, help="Updates that close a round; a third of the devices.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Run so many seeds, from --seed on.")] = 1,
    faults: Annotated[bool, typer.Option(help="Loss, duplicates, reordering, cuts, a broker's death.")] = False,
    crash: Annotated[
        str, typer.Option(help="side:n, a power cut at the n-th crash point of device or coordinator.")
    ] = "",
    data: Annotated[str, typer.Option(help="digits, or a file as edge-fleet run takes it.")] = "digits",
    split: Annotated[str, typer.Option(help="As of edge-fleet run.")] = "iid",
    shape: Annotated[str, typer.Option(help="Shape of one example, e.g. 784 or 1,28,28.")] = "",
    model: Annotated[
        str, typer.Option(help="A model of the zoo, an .onnx file (with --loss) or a bundle; linear by default.")
    ] = "",
    loss: Annotated[str, typer.Option(help="Loss of an .onnx model.")] = "",
    learning_rate: Annotated[float, typer.Option(min=0.0, help="On the devices.")] = 0.5,
    device_crashes_per_hour: Annotated[float, typer.Option(min=0.0)] = 0.0,
    coordinator_crashes_per_hour: Annotated[float, typer.Option(min=0.0)] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run.")] = False,
    verbose: Annotated[bool, typer.Option(help="Log what each device does.")] = False,
) -> None:
    """Coordinator and devices in virtual time: same seed, same outcome to the byte."""
    from device_sim.datasets import load_dataset
    from device_sim.fleet_run import shape_of
    from device_sim.scenario import FAULTY, Scenario, replay_command
    from device_sim.scenario import run as play
    from device_sim.simulation.model import bundle_for

    _log(verbose)
    options = {
        "data": data,
        "split": split,
        "shape": shape,
        "model": model,
        "loss": loss,
        "learning-rate": learning_rate,
    }
    usual = {"data": "digits", "split": "iid", "shape": "", "model": "", "loss": "", "learning-rate": 0.5}
    own = " ".join(f"--{name} {value}" for name, value in options.items() if value != usual[name])
    examples = load_dataset(data)
    if shape:
        examples = examples.reshaped(shape_of(shape))
    settings: dict[str, Any] = {"devices": devices, "rounds": rounds, "goal_count": goal or max(2, devices // 3)}
    settings |= {"split": split, "training": replace(Scenario().training, scalars={"lr": learning_rate})}
    settings["minimum_count"] = max(1, settings["goal_count"] // 3)
    if faults:
        settings["faults"] = FAULTY
    if crash:
        settings["crash"] = _crash_plan(crash)
    table = Table("seed", "outcome", "rounds", "abandoned", "power cuts", "messages", "virtual time", "CPU", "model")
    for number in range(seed, seed + seeds):
        began = time.process_time()
        played = Scenario(
            **settings,
            device_crashes_per_hour=device_crashes_per_hour,
            coordinator_crashes_per_hour=coordinator_crashes_per_hour,
        )
        if own:
            played = replace(played, replay=f"{replay_command(played, number)} {own}")
        bundle = bundle_for(model or None, examples, loss=loss or None, seed=number) if own else None
        outcome = play(played, number, bundle, data=examples)
        cpu = time.process_time() - began
        if as_json:
            print(json.dumps({"seed": number, **_plain(outcome), "cpu_seconds": round(cpu, 3)}))
        table.add_row(
            str(number),
            outcome.finished,
            str(len(outcome.rounds)),
            str(outcome.abandoned),
            str(outcome.crashes),
            str(outcome.messages),
            f"{outcome.virtual_seconds:.0f} s",
            f"{cpu:.1f} s",
            outcome.digests[-1].hex()[:12] if outcome.digests else "-",
        )
    if not as_json:
        console.print(table)


@app.command()
def version() -> None:
    """Prints the version."""
    print(__version__)


def _crash_plan(text: str) -> Any:
    from device_sim.world.crashes import CrashPlan

    side, _, nth = text.partition(":")
    if side not in ("device", "coordinator") or not nth.isdecimal() or int(nth) < 1:
        raise ConfigurationError(f"--crash: {text!r}; write device:<n> or coordinator:<n>, n from 1")
    return CrashPlan(side, int(nth))


def _plain(outcome: Any) -> dict[str, Any]:
    import dataclasses

    fields = dataclasses.asdict(outcome)
    fields["digests"] = [digest.hex() for digest in outcome.digests]
    fields["trace"] = outcome.trace.hex()
    return fields


def _log(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr
    )


def main() -> None:
    """The command's entry point: errors of ours are one line, with an exit code of their own."""
    try:
        app()
    except EdgeFedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1))


if __name__ == "__main__":
    main()
