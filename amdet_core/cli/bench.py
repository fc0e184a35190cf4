"""Commands that measure how good the detector is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..terminal import ProgressLine
from .common import Device, Preset

if TYPE_CHECKING:
    from ..bench import Benchmark, Detection

bench_app = typer.Typer(help="Measure how well models of known labels are told apart.", no_args_is_help=True)


@bench_app.command("detection")
def bench_detection(
    zoo: Annotated[Path, typer.Option(help="folder with labels.json and the models")],
    policy: Annotated[
        list[str] | None, typer.Option(help="how to judge: a name or a file; may be given several times")
    ] = None,
    preset: Annotated[Preset, typer.Option(help="how much work")] = Preset.standard,
    device: Annotated[Device, typer.Option(help="where to compute")] = Device.auto,
    seed: Annotated[int, typer.Option(help="of every scan", min=0)] = 42,
    jobs: Annotated[int, typer.Option(help="models scanned side by side", min=1)] = 1,
    sample: Annotated[
        int | None, typer.Option(help="at most so many models, every group by its share; all unless given", min=1)
    ] = None,
    out: Annotated[
        str, typer.Option(help="result file; one that an earlier run left is completed")
    ] = "detection-{zoo}-{policy}.json",
) -> None:
    """Scan every model of a zoo against its base, and compare the verdicts with the labels."""
    from ..bench import Benchmark, run
    from ..verdict import DEFAULT_POLICY, load_policy
    from ..zoo.labels import Labels

    policies = policy or [DEFAULT_POLICY]
    if len(policies) > 1 and "{policy}" not in out:
        raise ConfigError("{policy} in the name of the file, as there are several", out, "Add it to --out.")
    name = Labels.read(zoo).name
    settings: dict[str, Any] = {"preset": preset.value, "device": device.value, "seed": seed, "sample": sample}
    plans = [(Benchmark(zoo=zoo, policy=chosen, jobs=jobs, **settings), load_policy(chosen)) for chosen in policies]
    for benchmark, judge in plans:
        file = Path(out.replace("{zoo}", name).replace("{policy}", judge.name))
        try:
            with ProgressLine() as line:
                result = run(benchmark, file, command=_command(benchmark, file), progress=line)
        except KeyboardInterrupt:
            sys.stderr.write(f"\ninterrupted; the same command goes on from what {file} holds\n")
            raise typer.Exit(130) from None
        sys.stdout.write(f"{_table(result)}\nwritten: {file}\n")


def _command(benchmark: Benchmark, file: Path) -> str:
    """The command line that makes a file, with paths from the current folder; how many jobs changes nothing."""
    options = {
        "--zoo": _from_here(benchmark.zoo),
        "--policy": _from_here(Path(benchmark.policy)),
        "--preset": benchmark.preset,
        "--device": benchmark.device,
        "--seed": str(benchmark.seed),
        "--out": _from_here(file),
    }
    if benchmark.sample is not None:
        options["--sample"] = str(benchmark.sample)
    return shlex.join(["amdet", "bench", "detection", *(part for option in options.items() for part in option)])


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def _table(result: Detection) -> str:
    """The overall metrics, one a line."""
    found, meant = result.metrics.overall, result.metrics.intentional
    rows = {
        "recall": (found.recall, found.recall_interval),
        "false positives": (found.fpr, found.fpr_interval),
        "precision": (found.precision, None),
        "F1": (found.f1, None),
        "AUROC": (found.auroc, found.auroc_interval),
        "recall at 1% FPR": (found.tpr_at_1pct_fpr, found.tpr_at_1pct_fpr_interval),
        "PPV at 1% prevalence": (found.ppv_at_1pct_prevalence, None),
        "  at the highest FPR": (found.ppv_pessimistic, None),
    }
    head = (
        f"{result.zoo.name}, {result.policy}: {found.n_backdoored} backdoored, {found.n_benign} benign, "
        f"{found.could_not_tell} of them could not be judged; {meant.flagged} of {meant.n} intentional flagged"
    )
    return "\n".join([head, *(f"  {name:<22}{_number(*row)}" for name, row in rows.items())])


def _number(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
