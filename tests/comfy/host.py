"""A real ComfyUI as a child process: found, started, driven over HTTP, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import websocket

ROOT = Path(__file__).parents[2]
PACK = "comfyui-amdet"
SHIPPED = ("__init__.py", "nodes", "amdet_core", "workflows", "web", "locales", "pyproject.toml", "requirements.txt")
BOOT_SECONDS = 180


def comfy_folder() -> Path | None:
    """COMFYUI_PATH, else where comfy-cli installs."""
    named = os.environ.get("COMFYUI_PATH")
    home = Path.home() / ("comfy" if platform.system() == "Linux" else "Documents/comfy") / "ComfyUI"
    folder = Path(named) if named else home
    return folder if (folder / "main.py").is_file() else None


def comfy_python(folder: Path) -> Path | None:
    """The interpreter that this ComfyUI runs with: COMFYUI_PYTHON, else the one of its virtual environment."""
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(named)] if named else []
    candidates += [folder / env / place for env in ("venv", ".venv") for place in ("bin/python", "Scripts/python.exe")]
    return next((python for python in candidates if python.is_file()), None)


def reason_to_skip() -> str | None:
    """Why the tests that need a ComfyUI can't run here; None where they can."""
    folder = comfy_folder()
    if folder is None:
        return "no ComfyUI: set COMFYUI_PATH to its folder"
    return None if comfy_python(folder) else f"no virtual environment in {folder}: set COMFYUI_PYTHON to its python"


def install_pack(base: Path, name: str = PACK) -> Path:
    """Put what is shipped, and nothing else, into a base directory's custom_nodes."""
    target = base / "custom_nodes" / name
    target.mkdir(parents=True)
    for part in SHIPPED:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / part)
    return target


def install_probe(base: Path) -> None:
    """Put the tests' own nodes beside the pack."""
    source = Path(__file__).with_name("probe")
    shutil.copytree(source, base / "custom_nodes" / "probe", ignore=shutil.ignore_patterns("__pycache__"))


@dataclass
class Host:
    """A running ComfyUI."""

    base: Path
    port: int
    process: subprocess.Popen[bytes]
    log_file: Path
    client: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def log(self) -> str:
        """Everything that it has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def output(self) -> Path:
        """Its output directory."""
        return self.base / "output"

    def get(self, path: str) -> Any:
        """A JSON answer."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def read(self, path: str) -> bytes:
        """Any answer."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return bytes(answer.read())

    def post(self, path: str, value: Mapping[str, Any]) -> Any:
        """Post JSON; an error answer is returned like any other."""
        data = json.dumps(value).encode()
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=60) as answer:
                raw = answer.read()
        except HTTPError as error:
            raw = error.read()
        return json.loads(raw) if raw.strip() else {}

    def start(self, graph: Mapping[str, Any]) -> str:
        """Queue a graph that the host accepts as a whole, and return its id."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.client})
        assert answer.get("node_errors") == {}, json.dumps(answer, indent=1)
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, seconds: float = 1200) -> Run:
        """Its history entry when it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return Run(entry)
            assert self.process.poll() is None, self.log[-4000:]
            time.sleep(0.05)
        raise AssertionError(f"not done after {seconds} s\n{self.log[-4000:]}")

    def run(self, graph: Mapping[str, Any], seconds: float = 1200) -> Run:
        """Run a graph to its end, which must be a success."""
        done = self.wait(self.start(graph), seconds)
        assert done.status == "success", done.error or done.entry["status"]
        return done

    def refused(self, graph: Mapping[str, Any]) -> str:
        """The error message of the node at which a graph fails."""
        done = self.wait(self.start(graph))
        assert done.status == "error", done.entry["outputs"]
        return done.error

    @contextlib.contextmanager
    def events(self) -> Iterator[list[dict[str, Any]]]:
        """Messages that a browser would get meanwhile; live pictures as ``{"type": "picture", "bytes": ...}``."""
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=1)
        heard: list[dict[str, Any]] = []
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(websocket.WebSocketTimeoutException):
                    message = connection.recv()
                    is_text = isinstance(message, str)
                    heard.append(json.loads(message) if is_text else {"type": "picture", "bytes": message})

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            time.sleep(0.5)
            stop.set()
            thread.join(5)
            connection.close()


@dataclass(frozen=True)
class Run:
    """The end of one graph."""

    entry: dict[str, Any]

    @property
    def status(self) -> str:
        """success or error."""
        return str(self.entry["status"]["status_str"])

    @property
    def messages(self) -> list[str]:
        """Types of the messages that it ended with."""
        return [kind for kind, _ in self.entry["status"]["messages"]]

    @property
    def error(self) -> str:
        """What the failed node said."""
        errors = [about for kind, about in self.entry["status"]["messages"] if kind == "execution_error"]
        return f"{errors[0]['node_type']}: {errors[0]['exception_message']}" if errors else ""

    def text(self, node: str) -> str:
        """The text that a node shows."""
        return str(self.entry["outputs"][node]["text"][0])

    def images(self, node: str) -> list[dict[str, str]]:
        """The pictures that a node shows."""
        return list(self.entry["outputs"].get(node, {}).get("images", []))


@contextlib.contextmanager
def running(base: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Host]:
    """A ComfyUI on the CPU with everything that it writes under ``base``, up and answering."""
    folder = comfy_folder()
    assert folder is not None
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "user").mkdir(exist_ok=True)
    log_file, port = base / "log.txt", _free_port()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command(folder), "--port", str(port), *locations(base), *options],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    host = Host(base, port, process, log_file)
    try:
        until = time.monotonic() + BOOT_SECONDS
        while True:
            assert process.poll() is None, host.log[-4000:]
            assert time.monotonic() < until, host.log[-4000:]
            with contextlib.suppress(OSError):
                host.get("/queue")
                break
            time.sleep(0.25)
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def command(folder: Path) -> list[str]:
    """How to start it on a CPU."""
    python = comfy_python(folder)
    assert python is not None
    return [str(python), "main.py", "--cpu", "--disable-api-nodes"]


def locations(base: Path) -> list[str]:
    """Everything that it writes goes under one folder."""
    return ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfy.db'}"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
