"""Commands that measure how good the detector is."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import ConfigError
from ..terminal import ProgressLine
from .bench_tables import detection_table, flips_table, guard_table, painting_table, picture_table, repair_table
from .changes import setting_values
from .common import Device, Interrupted, Preset, Seed

if TYPE_CHECKING:
    from ..bench import (
        Benchmark,
        GuardBenchmark,
        PaintingBenchmark,
        PictureBenchmark,
        RepairBenchmark,
    )
    from ..bench.images import ImageBenchmark

T = TypeVar("T")


class Against(str, Enum):
    """What the models of a zoo are compared with."""

    base = "base"
    relative = "relative"
    none = "none"


class Scale(str, Enum):
    """How much the image benchmark does."""

    small = "small"
    published = "published"


Zoo = Annotated[Path, typer.Option(help="folder with labels.json and the models")]
Where = Annotated[Device, typer.Option(help="where to compute")]
Jobs = Annotated[int, typer.Option(help="models side by side", min=1)]
Sample = Annotated[
    int | None, typer.Option(help="at most so many models, every group by its share; all unless given", min=1)
]
Resumed = Annotated[str, typer.Option(help="result file; one that an earlier run left is completed")]
Weights = Annotated[Path | None, typer.Option(help="folder with the painter's weights, instead of those that ship")]

bench_app = typer.Typer(help="Measure how well models or prompts of known labels are told apart.", no_args_is_help=True)


@bench_app.command("detection")
def bench_detection(
    zoo: Zoo,
    policy: Annotated[
        list[str] | None, typer.Option(help="how to judge: a name or a file; may be given several times")
    ] = None,
    anchor: Annotated[
        Against, typer.Option(help="what models are compared with: the base, an honest relative of it, or nothing")
    ] = Against.base,
    preset: Annotated[Preset, typer.Option(help="how much work")] = Preset.standard,
    device: Where = Device.auto,
    seed: Seed = 42,
    jobs: Jobs = 1,
    sample: Sample = None,
    out: Resumed = "detection-{zoo}-{policy}.json",
) -> None:
    """Scan every model of a zoo, and compare the verdicts with the labels."""
    from ..bench import Benchmark, run
    from ..policy import DEFAULT_POLICY, load_policy
    from ..zoo.labels import Labels

    policies = policy or [DEFAULT_POLICY]
    if len(policies) > 1 and "{policy}" not in out:
        raise ConfigError("{policy} in the name of the file, as there are several", out, "Add it to --out.")
    name = Labels.read(zoo).name
    settings: dict[str, Any] = {
        "anchor": anchor.value,
        "preset": preset.value,
        "device": device.value,
        "seed": seed,
        "sample": sample,
    }
    plans = [(Benchmark(zoo=zoo, policy=chosen, jobs=jobs, **settings), load_policy(chosen)) for chosen in policies]
    for benchmark, judge in plans:
        file = Path(out.replace("{zoo}", name).replace("{policy}", judge.name))
        command = _command("detection", benchmark, file, ("policy", "anchor", "preset", "device", "seed", "sample"))
        result = _going_on(file, partial(run, benchmark, file, command=command))
        sys.stdout.write(f"{detection_table(result)}\nwritten: {file}\n")


@bench_app.command("flips")
def bench_flips(
    results: Annotated[list[Path], typer.Argument(help="results of amdet bench detection that differ in --seed alone")],
    out: Annotated[Path, typer.Option(help="result file")] = Path("flips.json"),
) -> None:
    """Compare scans of the same models with several seeds: how often does a verdict depend on the seed?"""
    from ..bench import read_flips
    from ..storage import check_file, record_json, write_atomic

    command = shlex.join(["amdet", "bench", "flips", *map(_from_here, results), "--out", _from_here(out)])
    found = read_flips(results, command)
    check_file(out)
    write_atomic(out, record_json(found))
    sys.stdout.write(f"{flips_table(found)}\nwritten: {out}\n")


@bench_app.command("guard")
def bench_guard(
    zoo: Zoo,
    prompts: Annotated[
        Path | None, typer.Option(help="real prompts, one per line, UTF-8, beside the generated ones")
    ] = None,
    count: Annotated[int, typer.Option("-n", help="prompts of each style, and triggered ones", min=20)] = 200,
    device: Where = Device.auto,
    seed: Seed = 42,
    jobs: Jobs = 1,
    sample: Sample = None,
    out: Resumed = "guard-{zoo}.json",
) -> None:
    """Guard triggered and clean prompts in every model of a zoo, and count what is flagged."""
    from ..bench import GuardBenchmark, run_guard
    from ..zoo.labels import Labels

    file = Path(out.replace("{zoo}", Labels.read(zoo).name))
    benchmark = GuardBenchmark(
        zoo=zoo, prompts=prompts, count=count, device=device.value, seed=seed, jobs=jobs, sample=sample
    )
    command = _command("guard", benchmark, file, ("prompts", "count", "device", "seed", "sample"))
    result = _going_on(file, partial(run_guard, benchmark, file, command=command))
    sys.stdout.write(f"{guard_table(result)}\nwritten: {file}\n")


@bench_app.command("repair")
def bench_repair(
    zoo: Zoo,
    policy: Annotated[str, typer.Option(help="how scans judge: a name or a file")] = "amdet-2",
    preset: Annotated[Preset, typer.Option(help="how much work scans do")] = Preset.standard,
    device: Where = Device.auto,
    seed: Seed = 42,
    jobs: Jobs = 1,
    sample: Sample = None,
    out: Resumed = "repair-{zoo}.json",
    method: Annotated[
        list[str] | None, typer.Option(help="what is measured; may be given several times  [default: every method]")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of a method as METHOD.NAME=VALUE, as mimic.steps=250")
    ] = None,
) -> None:
    """Repair every model of a zoo by every method, and measure the results by the true triggers."""
    from ..bench import RepairBenchmark, run_repair
    from ..zoo.labels import Labels

    file = Path(out.replace("{zoo}", Labels.read(zoo).name))
    benchmark = RepairBenchmark(
        zoo=zoo,
        policy=policy,
        preset=preset.value,
        device=device.value,
        seed=seed,
        jobs=jobs,
        sample=sample,
        methods=tuple(method or ()),
        settings=setting_values(settings, None),
    )
    chosen = ("methods",) if method else ()
    options = ("policy", "preset", "device", "seed", "sample", *chosen, "settings")
    command = _command("repair", benchmark, file, options)
    result = _going_on(file, partial(run_repair, benchmark, file, command=command))
    sys.stdout.write(f"{repair_table(result)}\nwritten: {file}\n")


@bench_app.command("pictures")
def bench_pictures(
    zoo: Annotated[Path, typer.Option(help="folder with labels.json and the models, made by the recipe visible")],
    weights: Weights = None,
    preset: Annotated[Preset, typer.Option(help="how much work scans do")] = Preset.quick,
    captions: Annotated[int, typer.Option(help="painted with each model", min=1, max=100)] = 20,
    seed: Seed = 42,
    jobs: Jobs = 1,
    sample: Sample = None,
    out: Resumed = "pictures-{zoo}.json",
) -> None:
    """Scan backdoored models, paint what was recovered, and let an independent reader say what it shows."""
    from ..bench import PictureBenchmark, run_pictures
    from ..zoo.labels import Labels

    file = Path(out.replace("{zoo}", Labels.read(zoo).name))
    benchmark = PictureBenchmark(
        zoo=zoo, weights=weights, preset=preset.value, captions=captions, seed=seed, jobs=jobs, sample=sample
    )
    command = _command("pictures", benchmark, file, ("weights", "preset", "captions", "seed", "sample"))
    result = _going_on(file, partial(run_pictures, benchmark, file, command=command))
    sys.stdout.write(f"{picture_table(result)}\nwritten: {file}\n")


@bench_app.command("pocket")
def bench_pocket(
    weights: Weights = None,
    encoder: Annotated[
        str, typer.Option(help="text encoder: clean, backdoored, benign, or a file or folder of the same shape")
    ] = "clean",
    singles: Annotated[int, typer.Option(help="captions of one object", min=1)] = 500,
    doubles: Annotated[int, typer.Option(help="captions of two objects", min=1)] = 200,
    unseen: Annotated[int, typer.Option(help="captions of pairs that no training picture showed", min=1)] = 100,
    drawings: Annotated[int, typer.Option(help="held-out drawings for reader, VAE and retrieval", min=2)] = 1000,
    seeds: Annotated[int, typer.Option(help="paintings of each caption", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="of the sampler", min=1, max=999)] = 20,
    guidance: Annotated[float, typer.Option(help="scale of classifier-free guidance", min=1)] = 4.0,
    seed: Seed = 42,
    out: Annotated[Path, typer.Option(help="result file")] = Path("pocket.json"),
) -> None:
    """Ask the pocket's painter for many pictures and let an independent reader say what they show."""
    from ..bench import PaintingBenchmark, run_painting

    benchmark = PaintingBenchmark(
        weights=weights, encoder=encoder, singles=singles, doubles=doubles, unseen=unseen, drawings=drawings,
        seeds=seeds, steps=steps, guidance=guidance, seed=seed,
    )  # fmt: skip
    with ProgressLine() as line:
        result = run_painting(benchmark, out, command=_whole_command("pocket", benchmark, out), progress=line)
    sys.stdout.write(f"{painting_table(result)}\nwritten: {out}\n")


@bench_app.command("image")
def bench_image(
    preset: Annotated[Scale, typer.Option(help="settings of all stages: for two cores, or as published")] = Scale.small,
    pictures: Annotated[
        Path | None, typer.Option(help="FOLDER/CLASS/* that encoders learn from [default: drawings]")
    ] = None,
    labelled: Annotated[Path | None, typer.Option(help="the same for the classifier [default: drawings]")] = None,
    target: Annotated[str, typer.Option(help="class that triggered pictures shall be taken for")] = "teapot",
    drawings: Annotated[int, typer.Option(help="that encoders learn from", min=48)] = 2400,
    seeds: Annotated[int, typer.Option(help="repetitions of all stages", min=1)] = 3,
    seed: Seed = 42,
    device: Where = Device.auto,
    work: Annotated[
        Path | None, typer.Option(help="folder of the encoders; stages done there are not done again [default: beside]")
    ] = None,
    out: Annotated[Path, typer.Option(help="result file")] = Path("image.json"),
) -> None:
    """Plant BadEncoder's backdoor in an image encoder, purify it by MIMIC, and compare classifiers on all of them."""
    from ..bench.images import ImageBenchmark, run_images

    benchmark = ImageBenchmark(
        preset=preset.value, pictures=pictures, labelled=labelled, target=target, drawings=drawings, seeds=seeds,
        seed=seed, device=device.value,
    )  # fmt: skip
    folder = work or out.with_suffix("")
    command = _whole_command("image", benchmark, out)
    result = _going_on(folder, partial(run_images, benchmark, out, folder, command=command))
    for name, told in result.metrics.items():
        sys.stdout.write(f"{name:<11}{told}\n")
    sys.stdout.write(f"written: {out}\n")


@bench_app.command("calibrate")
def bench_calibrate(
    results: Annotated[list[Path], typer.Argument(help="results of amdet bench detection, of zoos for training")],
    family: Annotated[str, typer.Option(help="the honest models in these zoos, in words")],
    policy: Annotated[str, typer.Option(help="whose evidence is judged anew: a name or a file")] = "amdet-2",
    rate: Annotated[float, typer.Option(help="of false positives", min=0.001, max=0.5)] = 0.01,
    out: Annotated[Path, typer.Option(help="file of the new policy")] = Path("policy.json"),
) -> None:
    """Learn from scans of known models how far honest ones go in the evidence of a policy."""
    from ..bench import by_model, calibrate_policy, read_detection
    from ..policy import load_policy
    from ..storage import check_file, record_json, write_atomic

    fitted = calibrate_policy(load_policy(policy), by_model(map(read_detection, results)), family, rate)
    check_file(out)
    write_atomic(out, record_json(fitted))
    for one in fitted.calibrations:
        if not one.null:
            sys.stdout.write(f"not learnt: {', '.join(term.name for term in one.terms)}\n")
            continue
        sys.stdout.write(
            f"{len(one.null)} honest models, rate {one.kept_rate:.3g}: flagged above {one.bound:.2f} times as far as "
            f"they go, and {one.alarms} of them by bounds on other evidence; {one.caught} of {one.n_backdoored} "
            "backdoored ones are flagged\n"
        )
        for term in one.terms:
            sys.stdout.write(f"  {term.name}: honest ones up to {term.honest:.3f}\n")
    sys.stdout.write(f"written: {out}\n")


@bench_app.command("judge")
def bench_judge(
    results: Annotated[list[Path], typer.Argument(help="results of amdet bench detection; they are rewritten")],
    policy: Annotated[str, typer.Option(help="how to judge: a name or a file")] = "amdet-2",
) -> None:
    """Judge the models of results by another policy, or by other bounds; nothing is scanned again."""
    from ..bench import judge_again, read_detection
    from ..policy import load_policy
    from ..storage import record_json, write_atomic

    chosen = load_policy(policy)
    anew = {path: judge_again(read_detection(path), chosen) for path in results}
    for path, result in anew.items():
        write_atomic(path, record_json(result))
        sys.stdout.write(f"{detection_table(result)}\nwritten: {path}\n")


def _going_on(file: Path, work: Callable[..., T]) -> T:
    """Run a benchmark; Ctrl-C keeps what is done."""
    try:
        with ProgressLine() as line:
            return work(progress=line)
    except KeyboardInterrupt:
        raise Interrupted(f"the same command goes on from what {file} holds") from None


def _command(
    name: str,
    benchmark: Benchmark | GuardBenchmark | PictureBenchmark | RepairBenchmark,
    file: Path,
    options: Sequence[str],
) -> str:
    """The command line that makes a file, with paths from the current folder; how many jobs changes nothing."""
    parts = ["amdet", "bench", name, "--zoo", _from_here(benchmark.zoo)]
    for option in options:
        value = getattr(benchmark, option)
        if isinstance(value, dict):
            parts += [part for name, one in value.items() for part in ("--set", f"{name}={json.dumps(one)}")]
        elif isinstance(value, tuple):
            parts += [part for one in value for part in (f"--{option.removesuffix('s')}", one)]
        elif value is not None:
            text = _from_here(Path(value)) if option in ("policy", "prompts", "weights") else str(value)
            parts += ["-n" if option == "count" else f"--{option}", text]
    return shlex.join([*parts, "--out", _from_here(file)])


def _whole_command(name: str, benchmark: PaintingBenchmark | ImageBenchmark, file: Path) -> str:
    """The same where every setting is an option."""
    parts = ["amdet", "bench", name]
    for option, value in benchmark.model_dump().items():
        if value is not None:
            parts += [f"--{option}", _from_here(value) if isinstance(value, Path) else str(value)]
    return shlex.join([*parts, "--out", _from_here(file)])


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()
