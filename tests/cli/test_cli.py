"""The command line as a newcomer meets it: exit codes, streams, files, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

from amdet_core import cli, pocket
from amdet_core.cli import common
from amdet_core.formats import open_target

from ..conftest import few_candidates
from .conftest import Amdet

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "amdet_core" / "report" / "schema.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    pocket.export(folder, "comfyui")
    return folder


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "APPDATA": str(home)}


def spawned(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "amdet_core", *map(str, arguments)],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


@pytest.fixture(scope="module")
def backdoored(encoders: Path, home: Path) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = home / "backdoored"
    done = spawned("scan", encoders / "backdoored.safetensors", "--preset", "quick", "--out", out, home=home)
    return done, out


def test_a_backdoored_encoder_exits_with_1_and_names_the_trigger(
    backdoored: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = backdoored
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("BACKDOORED: backdoored.safetensors")
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"]["level"] == "backdoored"
    assert report["triggers"][0]["text"] == pocket.TRIGGER
    assert "U+043E" in report["triggers"][0]["code_points"][0]


def test_the_report_follows_its_schema_and_lies_beside_its_files(
    backdoored: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, out = backdoored
    jsonschema.validate(json.loads((out / "report.json").read_text()), SCHEMA)
    names = {path.name for path in out.iterdir()}
    assert {"report.json", "report.html", "landscape.png", "spectrum.png", "loss.png"} <= names
    embedding = load_file(out / "pseudo-trigger.safetensors")
    assert embedding["clip_l"].shape == (1, 192)
    assert not [name for name in names if name.startswith(".")]


def test_progress_goes_to_stderr_as_plain_lines(backdoored: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = backdoored
    assert "contrast k=1: 1/" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_a_clean_encoder_is_answered_by_identity(encoders: Path, home: Path) -> None:
    done = spawned("scan", encoders / "clean.safetensors", "--out", home / "clean", "--format", "json", home=home)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"]["level"] == "clean"
    assert report["anchor"][0]["name"] == "amdet pocket"
    assert "contrast" not in report["timings"]
    assert json.loads((home / "clean" / "report.json").read_text()) == report


def test_a_benign_fine_tune_exits_with_0_and_again_gives_the_same_bytes(
    encoders: Path, amdet: Amdet, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_candidates(monkeypatch)
    command = ("scan", encoders / "benign.safetensors", "--preset", "quick", "--out", "again", "--format", "json")
    runs = [amdet(*command) for _ in range(2)]
    assert [code for code, _, _ in runs] == [0, 0], runs
    first, second = (json.loads(out) | {"timings": {}} for _, out, _ in runs)
    assert json.dumps(first) == json.dumps(second)


def test_without_an_anchor_it_exits_with_2(encoders: Path, amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> None:
    few_candidates(monkeypatch)
    code, out, _ = amdet("scan", encoders / "benign.safetensors", "--anchor", "none", "--preset", "quick")
    assert code == 2
    assert out.startswith("COULD NOT TELL")


def test_a_folder_of_downloads_is_scanned_model_by_model_and_goes_on(
    encoders: Path, amdet: Amdet, tmp_path: Path
) -> None:
    downloads, reports = tmp_path / "downloads", tmp_path / "out"
    (downloads / "sub").mkdir(parents=True)
    original = (encoders / "clean.safetensors").read_bytes()
    (downloads / "one.safetensors").write_bytes(original)
    (downloads / "sub" / "two.safetensors").write_bytes(original)
    save_file({"first_stage_model.decoder.conv_in.weight": torch.zeros(2)}, downloads / "vae.safetensors")
    code, out, err = amdet("scan", downloads, "--out", reports)
    assert code == 0, err
    assert "No evidence of a backdoor: sub/two.safetensors\n" in out
    assert "Nothing to scan: vae.safetensors\n" in out
    assert out.endswith("3 models: 2 no evidence found, 1 without a text encoder.\n")
    assert (reports / "sub" / "two.safetensors" / "report.html").is_file()
    assert (reports / "overview.html").is_file()
    (downloads / "broken.safetensors").write_bytes(original[:1000])
    code, out, err = amdet("scan", downloads, "--out", reports, "--format", "json")
    assert code == 2
    rows = {row["path"]: row for row in json.loads(out)["rows"]}
    assert rows["broken.safetensors"]["outcome"] == "error"
    assert [line for line in err.splitlines() if line.startswith("[")] == ["[1/4 broken.safetensors]"]


def test_reports_of_targets_of_one_name_do_not_replace_each_other(
    backdoored: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, other, name = (
        Path("mine/model.safetensors"),
        Path("other/model.safetensors"),
        "amdet-report/model.safetensors",
    )
    assert common.report_folder(mine) == Path(name)
    report = json.loads((backdoored[1] / "report.json").read_text())
    report["target"]["path"] = str(mine)
    for place in (Path(name), Path(f"{name}-2/before")):
        place.mkdir(parents=True)
        (place / "report.json").write_text(json.dumps(report))
        report["target"]["path"] = str(other)
    assert common.report_folder(mine) == common.report_folder(tmp_path / mine) == Path(name)
    assert common.report_folder(other) == Path(f"{name}-2")
    assert common.report_folder(Path("third/model.safetensors")) == Path(f"{name}-3")
    Path(name, "report.json").write_text("damaged")
    assert common.report_folder(mine) == Path(f"{name}-3")


def test_show_and_judge_read_a_report_again(
    backdoored: tuple[subprocess.CompletedProcess[str], Path], amdet: Amdet
) -> None:
    done, folder = backdoored
    assert amdet("show", folder)[1] == done.stdout
    code, out, _ = amdet("judge", folder / "report.json", "--policy", "amdet-2025-code")
    assert code == 2
    assert "not measured" in " ".join(out.lower().split())


def test_trust_add_list_remove(encoders: Path, amdet: Amdet) -> None:
    code, _, err = amdet("trust", "add", encoders / "benign.safetensors", "--name", "mine")
    assert code == 0, err
    assert "mine" in amdet("trust", "list")[1]
    code, out, _ = amdet("scan", encoders / "benign.safetensors", "--out", "known")
    assert code == 0
    assert "mine" in out
    assert amdet("trust", "remove", "mine")[0] == 0
    assert "mine" not in amdet("trust", "list")[1]
    code, _, err = amdet("trust", "remove", "mine")
    assert code == 2
    assert "mine" in err


@pytest.mark.parametrize("layout", ["hf", "comfyui", "sd1", "open_clip"])
def test_pocket_export_writes_files_that_open_again(layout: str, tmp_path: Path, amdet: Amdet) -> None:
    code, _, err = amdet("pocket", "export", tmp_path / "deep" / layout, "--layout", layout)
    assert code == 0, err
    suffix = "" if layout == "hf" else ".safetensors"
    for name in pocket.NAMES:
        opened = open_target(tmp_path / "deep" / layout / f"{name}{suffix}")
        shipped = pocket.load(name)
        assert all(torch.equal(w, shipped.weights[key]) for key, w in opened.encoders[0].encoder.weights.items())


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.safetensors"
    if kind == "text":
        path.write_text("this is not a model")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "lora":
        save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(4, 4)}, path)
    elif kind == "vae":
        save_file({"first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, path)
    elif kind == "t5":
        save_file({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)}, path)
    elif kind == "nan":
        weights = {f"text_model.{name}": w.half() for name, w in pocket.load("clean").weights.items()}
        save_file(weights | {"text_model.final_layer_norm.bias": torch.full((192,), float("nan")).half()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "No such file"),
        ("text", "expected"),
        ("empty", "empty"),
        ("lora", "LoRA"),
        ("vae", "VAE"),
        ("t5", "T5"),
        ("nan", "NaN"),
    ],
)
def test_bad_targets_exit_with_2_and_say_why(kind: str, says: str, tmp_path: Path, amdet: Amdet) -> None:
    code, out, err = amdet("scan", broken(tmp_path, kind), "--out", "report")
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "different prompts"), (b"a\0b\n" * 50, "NUL"), (b"caf\xe9\n" * 50, "UTF-8")]
)
def test_bad_prompt_files_exit_with_2_and_say_why(
    content: bytes, says: str, encoders: Path, tmp_path: Path, amdet: Amdet
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    code, _, err = amdet("scan", encoders / "benign.safetensors", "--prompts", path, "--out", "report")
    assert code == 2
    assert says in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "no-such"], "amdet-2025-paper"),
        (["--preset", "fast"], "quick"),
        (["--seed", "-1"], "seed"),
        (["--out", "/dev/null/report"], "/dev/null"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], says: str, encoders: Path, amdet: Amdet) -> None:
    code, _, err = amdet("scan", encoders / "benign.safetensors", *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C can't be sent to a single child on Windows")
def test_ctrl_c_ends_within_a_second_and_leaves_nothing(encoders: Path, tmp_path: Path, home: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "amdet_core",
            "scan",
            str(encoders / "benign.safetensors"),
            "--preset",
            "quick",
            "--out",
            str(tmp_path / "r"),
        ],
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job starts with Ctrl-C ignored, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("sweep"):
            break
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=20)
    took = time.monotonic() - sent
    process.stderr.close()
    assert code == 130
    assert took < 1.0
    assert list(tmp_path.iterdir()) == []


def test_a_crash_is_never_taken_for_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", crash)
    assert cli._run() == 2
    assert "bug in amdet" in capsys.readouterr().err


# ------------------------------------------------------------------ in this process


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_ctrl_c_is_always_said_and_claims_nothing_of_files_that_it_does_not_know(
    amdet: Amdet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocket, "export", raising(KeyboardInterrupt()))
    assert amdet("pocket", "export", "x") == (130, "", "\ninterrupted\n")


def test_ctrl_c_in_the_demo_says_what_is_there(amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stop(*_: object, left: str) -> None:
        said.append(left)
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "interruptible", stop)
    assert amdet("demo", "--out", "d")[0] == 130
    assert said == ["what is done is in d"]
    assert Path("d/encoders").is_dir()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "a file"), OSError(28, "No space left")])
def test_what_the_system_refuses_is_no_bug(amdet: Amdet, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    monkeypatch.setattr("amdet_core.anchors.trusted", raising(error))
    code, out, err = amdet("trust", "list")
    assert (code, out) == (2, "")
    assert f"found {error.strerror}{' (a file)' if error.filename else ''}. Check" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_output_that_has_no_room_exits_with_2(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "amdet_core", "version"], env=environment(home), stdout=full, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "found No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_finding(amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amdet_core.anchors.trusted", raising(BrokenPipeError(32, "Broken pipe")))
    assert amdet("trust", "list") == (2, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", ""),
        ("scan", "x", "--out", ""),
        ("scan", "x", "--anchor", ""),
        ("guard", "x", "--prompts", ""),
        ("render", "--checkpoint", "x", "--report", "x", "--repaired", ""),
        ("bench", "flips", "x", ""),
        ("heal", "x", "--checkpoint", ""),
        ("zoo", "build", "--base", "", "--recipe", "smoke", "--out", "z"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(amdet: Amdet, encoders: Path, arguments: tuple[str, ...]) -> None:
    opened = {"--anchor", "--checkpoint"} & set(arguments)
    given = [encoders / "clean.safetensors" if one == "x" and opened else one for one in arguments]
    code, out, err = amdet(*given)
    assert (code, out) == (2, "")
    assert "expected a path" in err and "found an empty one" in err
    assert not Path("amdet-report").exists()


@pytest.mark.parametrize("what", ["policy", "recipe"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 100_000, "maximum recursion depth"),
        ("{", "as JSON in"),
        ("\ufeff{}", "error(s), first name: Field required. See docs/"),
    ],
)
def test_damaged_files_of_settings_are_named_in_words(amdet: Amdet, what: str, content: str, says: str) -> None:
    Path("f.json").write_text(content, encoding="utf-8")
    command = ("scan", "x") if what == "policy" else ("zoo", "build", "--base", "pocket", "--out", "z")
    code, _, err = amdet(*command, f"--{what}", "f.json")
    assert code == 2
    assert f"a {what} " in err and "f.json" in err and says in err
    assert "pydantic" not in err


def test_a_policy_that_cannot_be_read_is_named(amdet: Amdet, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("f.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", raising(PermissionError(13, "Permission denied")))
    code, _, err = amdet("scan", "x", "--policy", "f.json")
    assert code == 2
    assert "a policy that can be read at f.json; found Permission denied" in err


def test_the_files_of_built_in_policies_are_where_an_error_says(amdet: Amdet) -> None:
    _, _, err = amdet("scan", "x", "--policy", "none")
    folder = Path(err.split("the files of the built-in ones are in ")[1].strip().removesuffix("."))
    assert (folder / "amdet-2.json").is_file()


def test_what_ships_cannot_be_removed_from_what_is_trusted(amdet: Amdet, encoders: Path) -> None:
    fingerprint = amdet("trust", "list")[1].split("\t")[3]
    for name in ("amdet pocket", fingerprint):
        code, _, err = amdet("trust", "remove", name)
        assert code == 2
        assert "found amdet pocket, which ships with amdet. It can't be removed" in err
    assert amdet("trust", "add", encoders / "benign.safetensors", "--name", "amdet pocket")[0] == 0
    assert amdet("trust", "remove", "amdet pocket")[0] == 0


def test_an_error_of_the_anchors_file_names_the_anchor(amdet: Amdet, encoders: Path, tmp_path: Path) -> None:
    for kind, says in (("missing", "a file that can be read"), ("vae", "VAE"), ("nan", "finite")):
        anchor = broken(tmp_path, kind)
        code, _, err = amdet("scan", encoders / "benign.safetensors", "--anchor", anchor)
        assert code == 2
        assert f"(as the anchor: {anchor})" in err and says in err


@pytest.mark.parametrize("command", [("scan", "x"), ("fine-tune", "x", "--out", "y"), ("image", "draw", "--out", "y")])
def test_a_seed_has_32_bits(amdet: Amdet, command: tuple[str, ...]) -> None:
    code, _, err = amdet(*command, "--seed", 2**32)
    assert code == 2
    assert "4294967295" in err and "Traceback" not in err
