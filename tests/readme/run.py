"""Run every command of README.md and of the pages in docs/, in a copy of this project; fail where one fails.

    python tests/readme/run.py [--daily] [FOLDER]

The copy is made in FOLDER and left there, else in a temporary folder. Its trainings take a few steps only.
With --daily (`.ci/run`), commands that take long are left out or get less to do: see DAILY.
Python and YAML blocks that name a file are written to it or merged into it. Only the standard library is
imported here, since the first command of the README is the one that installs everything else.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (  # in the order of reading
    "README.md",
    "docs/results.md",
    "docs/experiments.md",
    "docs/tracking.md",
    "docs/data.md",
    "docs/models.md",
    "docs/operation.md",
    "docs/adding-a-model.md",
)
COMMAND_SECONDS, START_SECONDS = 900, 180
FOREIGN = ("DARKROOM_", "DVC_", "MLFLOW_", "RAY_", "GIT_", "VIRTUAL_ENV", "PYTHONPATH", "MAKE")
IDENTITY = {
    "GIT_AUTHOR_NAME": "reader",
    "GIT_AUTHOR_EMAIL": "reader@example.org",
    "GIT_COMMITTER_NAME": "reader",
    "GIT_COMMITTER_EMAIL": "reader@example.org",
}
BUDGETS = {
    "num_steps": 20,
    "warmup_steps": 5,
    "log_every": 5,
    "validate_every": 10,
    "sample_every": 10,
    "checkpoint_every": 10,
    "num_train": 400,  # clips and scenes
    "num_validation": 40,
    "num_test": 100,
}
# With fewer steps its images miss their floor, and there is no vae@champion; a smaller batch is enough.
VAE_STEPS, VAE_BATCH = 150, 32
SERVERS = {
    "make ui": 5000,
    "mlflow models serve": 8080,
}  # they run until the block ends; the port in the pages

# Commands that are not run as they stand: (pattern, what takes its place, the reason).
CHANGED = [
    (r"^make test$", "", "run afterwards: make readme, .ci/run"),
    (r"^xdg-open (\S+)", r"test -s \1", "no screen: the file must exist"),
    (r"\b(num_steps|validate_every)=\d+", r"\1=20", "a few steps"),
    (
        r"^darkroom promote vae$",
        "darkroom promote vae --reason README",
        "so short a training may pass the gates or not",
    ),
    (
        r"^darkroom schedule install --systemd$",
        "darkroom schedule install --systemd --dry-run",
        "this machine keeps its schedule",
    ),
    (
        r"^darkroom leaderboard losses.yaml$",
        "sed -i 's/num_steps: .*/num_steps: 20/; s/seeds: .*/seeds: [0]/' losses.yaml && "
        "darkroom leaderboard losses.yaml",
        "a few steps and one seed",
    ),
    (r"^darkroom seeds vae 0 1 2$", "darkroom seeds vae 0 1", "one new training"),
    (
        r"^dvc exp run train-(ae|transformer) evaluate",
        r"dvc exp run train-\1 evaluate -S '+evaluate.models=[\1]'",
        "the other models were measured before",
    ),
    (r"^curl -s ", "curl -sS --fail ", "an HTTP error is an error"),
]
if "DARKROOM_MIRROR" not in os.environ:
    CHANGED.append(
        (r"^(darkroom recipe mnist) && dvc repro", r"\1", "needs MNIST's files: set DARKROOM_MIRROR")
    )
else:
    CHANGED.append(
        (
            r"^(darkroom recipe mnist) && dvc repro",
            r"\1 && sed -Ei 's/(num_steps|validate_every): [0-9]+/\\1: 20/; s/(warmup_steps): .*/\\1: 5/' "
            "params.yaml && dvc repro",
            "a few steps",
        )
    )
# What --daily replaces, in the same form. Something else shows every day what these commands would show.
DAILY = [
    (r"^darkroom leaderboard losses.yaml$", "", "nightly; daily: --dry-run, tests/leaderboard"),
    (
        r"^dvc exp run -S vae.model.beta=2.0$",
        r"dvc exp run -S vae.model.beta=2.0 -S '+evaluate.models=[vae]'",
        "the other models were measured before",
    ),
    (
        r"^dvc exp run train-ae evaluate (-S ae.model.architecture=unet .*)",
        r"dvc exp run train-ae \1",
        "measured: nightly; daily: tests/evaluation",
    ),
    (r"^darkroom seeds vae .*", "", "nightly; daily: tests/tracking/test_promotion.py"),
    (
        r"^dvc exp run (-S data.source=folder .*)",
        r"dvc exp run train-cnn \1",
        "all models: nightly; daily: one",
    ),
    (
        r"^(darkroom classify data/own/flowers/rose)$",
        r"\1 && git restore . && dvc checkout",
        "the other models are those of digits",
    ),
    (r"^dvc exp run train-ae .*held_out_class=3", "", "nightly; daily: tests/models/test_ae.py"),
    (r"^dvc exp run train-(transformer|unet|rcnn) .*", "", "nightly; daily: tests/models/test_contract.py"),
    (r"^darkroom retrain$", "", "nightly; daily: --dry-run, tests/retraining"),
    (
        r"^darkroom schedule install --systemd$",
        "darkroom schedule install --systemd --dry-run && git revert --no-edit HEAD && dvc checkout",
        "this machine keeps its schedule; the models are those of digits",
    ),
]
TWICE = {  # run a second time, when nothing is left to do
    "make repro": "make repro > .darkroom/second.log && ! grep 'Running stage' .darkroom/second.log",
}
PICTURES = {
    "Using the models": ["digits"],
    "Your own pictures": ["flowers", "data/own/flowers", "{incoming}/flowers"],
}


def main(folder: Path, daily: bool) -> None:
    """Make the copy in ``folder`` and run the pages there."""
    CHANGED[:0] = DAILY if daily else []
    project = copy_project(folder)
    text = "\n".join((project / page).read_text(encoding="utf-8") for page in PAGES)
    text = text.replace("/srv/incoming", f"{folder}/incoming")
    text = re.sub(r"image_size([=:] ?)32", r"image_size\g<1>16", text)  # a quarter of the pixels
    text = re.sub(r"num_steps: \d+", "num_steps: 50", text)  # of the example of a model
    began, seen = time.monotonic(), set[str]()
    for heading, language, block in blocks(text):
        print(f"\n## {heading} ({language or 'text'})", flush=True)
        if heading in PICTURES and heading not in seen:
            prepare(project, *(word.format(incoming=folder / "incoming") for word in PICTURES[heading]))
        seen.add(heading)
        if language == "sh":
            run_block(project, block)
        elif language:
            write_block(project, block)
    print(f"\nThe commands succeeded in {time.monotonic() - began:.0f} s in {project}", flush=True)


def copy_project(folder: Path) -> Path:
    """The files that git knows or would add, committed in a repository of their own, with small budgets."""
    project = folder / "darkroom"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    params = (project / "params.yaml").read_text(encoding="utf-8")
    for key, value in BUDGETS.items():
        params = re.sub(rf"\b{key}: \d+", f"{key}: {value}", params)
    for key, value in (("num_steps", VAE_STEPS), ("batch_size", VAE_BATCH)):
        params = re.sub(rf"(?ms)(^vae:.*?{key}: )\d+", rf"\g<1>{value}", params, count=1)
    (project / "params.yaml").write_text(params, encoding="utf-8")
    run(project, "git init -q -b main && git add -A && git commit -q -m 'A copy with small budgets'")
    return project


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """The fenced blocks of a Markdown text: heading above it, language, content."""
    heading = ""
    for line, language, block in re.findall(
        r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        heading = line or heading
        if not line:
            yield heading, language, block


def commands(block: str) -> Iterator[str]:
    """The commands of a shell block: continued lines are joined, comments left out."""
    for line in block.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)# .*|^#.*", "", line).strip()
        if command:
            yield command


def adapted(command: str) -> str:
    """What is run for a command of a page; empty for one that is left out."""
    for pattern, replacement, reason in CHANGED:
        if re.search(pattern, command):
            print(f"  {command}: {reason}", flush=True)
            command = re.sub(pattern, replacement, command)
    return command


def run_block(project: Path, block: str) -> None:
    """Run the commands of a block in one shell environment: exports and servers last until its end."""
    exports, servers = list[str](), list[subprocess.Popen]()
    ports = {str(port): str(free_port()) for port in SERVERS.values()}
    try:
        for command in map(adapted, commands(block)):
            for port, free in ports.items():
                command = re.sub(rf"\b{port}\b", free, command)
            if command.startswith("export "):
                exports.append(command)
            elif server := next((name for name in SERVERS if command.startswith(name)), None):
                servers.append(serve(project, command, exports, ports[str(SERVERS[server])]))
            elif command:
                run(project, command, exports)
                if command in TWICE:
                    run(project, TWICE[command], exports)
    finally:
        for server in servers:
            stop(server)


def write_block(project: Path, block: str) -> None:
    """Write a block to the file that its first line names; merge YAML into an existing file."""
    path = re.match(r"# ([\w./-]+)", block)
    if path is None:
        raise SystemExit(f"a block names no file in its first line:\n{block}")
    if path[1].endswith(".py") or not (project / path[1]).exists():
        (project / path[1]).write_text(block, encoding="utf-8")
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(block)
            file.flush()
            prepare(project, "merge", path[1], file.name)


def prepare(project: Path, *arguments: str) -> None:
    """Run tests/readme/prepare.py, which needs the installed packages."""
    run(project, shlex.join(["python", "tests/readme/prepare.py", *arguments]))


def run(project: Path, command: str, exports: list[str] | None = None) -> None:
    """Run a command to its end. Exits with its output if it fails or shows a traceback."""
    print(f"$ {command}", flush=True)
    began = time.monotonic()
    process = start(project, command, exports or [])
    try:
        output, _ = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        stop(process)
        raise SystemExit(f"not finished after {COMMAND_SECONDS} s: {command}") from None
    if process.returncode or "Traceback (most recent call last)" in output:
        raise SystemExit(f"{output}\nexit code {process.returncode}: {command}")
    print(f"  {time.monotonic() - began:.1f} s", flush=True)


def serve(project: Path, command: str, exports: list[str], port: str) -> subprocess.Popen:
    """Start a server and wait until its port answers."""
    command += f" PORT={port}" if command.startswith("make") else ""
    print(f"$ {command} &", flush=True)
    with tempfile.TemporaryFile("w+") as output:
        process = start(project, command, exports, output)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", int(port))) == 0:
                    return process
            time.sleep(0.2)
        stop(process)
        output.seek(0)
        raise SystemExit(f"{output.read()}\nnothing answers on port {port}: {command}")


def start(
    project: Path, command: str, exports: list[str], output: int | object = subprocess.PIPE
) -> subprocess.Popen:
    """Start a command in bash, in the project, in a process group of its own."""
    activate = ["source .venv/bin/activate"] if (project / ".venv/bin/activate").is_file() else []
    script = "\n".join(["set -e -o pipefail", *activate, *exports, command])
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) or name == "DARKROOM_MIRROR"
    }
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=project,
        env=kept | IDENTITY,
        stdin=subprocess.DEVNULL,
        stdout=output,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen) -> None:
    """End a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def free_port() -> int:
    """A port of the loopback interface on which nothing listens now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--daily"]
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(*given or [temporary]).resolve(), daily="--daily" in sys.argv)
