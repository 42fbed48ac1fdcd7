"""The tracking server on this machine alone: a real PostgreSQL and MLflow with passwords, both on loopback.

    MLFLOW_AUTH_ADMIN_PASSWORD=... python infra/mlflow/local.py --port 5000 --artifacts s3://bucket/prefix

Ctrl-C or SIGTERM ends all of it, and so does the death of this process (Linux). Runs, users and passwords
stay in ``--folder``.
"""

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import requests

from pipeline.errors import BadInput, DarkroomError
from pipeline.process import die_with_parent, run

HOST, ADMIN, PASSWORD = "127.0.0.1", "admin", "MLFLOW_AUTH_ADMIN_PASSWORD"
SHORTEST, START_SECONDS, STOP_SECONDS = 12, 120, 20  # MLflow itself demands 12 characters


def main(*arguments: str) -> None:
    """Serve until a signal ends it.

    Raises ``BadInput`` for a missing password, program or port, ``DarkroomError`` if a part fails.
    """
    parser = argparse.ArgumentParser(description="PostgreSQL and MLflow with passwords, on loopback")
    parser.add_argument("--port", type=int, default=5000, help="MLflow's; 0: any that is free")
    parser.add_argument(
        "--folder", type=Path, default=Path(".darkroom/server"), help="where everything is kept"
    )
    parser.add_argument(
        "--artifacts",
        default=os.environ.get("MLFLOW_ARTIFACTS_DESTINATION"),
        help="s3://bucket/prefix, or a folder",
    )
    asked = parser.parse_args(arguments)
    if len(os.environ.get(PASSWORD, "")) < SHORTEST:
        raise BadInput(
            "missing or too short",
            where=PASSWORD,
            remedy=f"export {SHORTEST} characters, as from: openssl rand -base64 18",
        )
    programs, port, folder = _programs(), _port(asked.port), asked.folder.resolve()
    with ExitStack() as parts, suppress(KeyboardInterrupt):
        login, check_postgres = _start_postgres(parts, programs, folder / "postgres")
        check_mlflow = _start_mlflow(parts, folder, port, asked.artifacts or str(folder / "artifacts"), login)
        print(f"export MLFLOW_TRACKING_URI=http://{HOST}:{port} MLFLOW_TRACKING_USERNAME={ADMIN}")
        print(
            "read -rs MLFLOW_TRACKING_PASSWORD && export MLFLOW_TRACKING_PASSWORD  # typed: not in a history"
        )
        print(f"# ready; everything is in {folder}; Ctrl-C ends it", flush=True)
        while True:
            check_postgres()
            check_mlflow()
            time.sleep(0.5)


def _programs() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps it off PATH."""
    found = shutil.which("initdb")
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not (found or known):
        raise BadInput(
            "PostgreSQL is not installed",
            where="initdb",
            remedy="apt-get install postgresql, or put its bin folder on PATH",
        )
    return (Path(found).resolve() if found else known[-1]).parent


def _port(wanted: int) -> int:
    """``wanted``, or a free port for 0."""
    try:
        with socket.create_server((HOST, wanted)) as listener:
            return listener.getsockname()[1]
    except OSError:
        raise BadInput(
            "the port is in use, or not yours to take",
            where=f"{HOST}:{wanted}",
            remedy="choose another: PORT=...",
        ) from None


def _start_postgres(
    parts: ExitStack, programs: Path, home: Path
) -> tuple[dict[str, str], Callable[[], None]]:
    """PostgreSQL on a free port, created at the first start: the variables for its clients, and its check."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    password, new, data = _secret(home / "password"), home / "new", home / "data"
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        user = next((user for user in pwd.getpwall() if user.pw_name == "postgres"), pwd.getpwnam("nobody"))
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        shutil.chown(home, user.pw_uid, user.pw_gid)
        shutil.chown(home / "password", user.pw_uid, user.pw_gid)
    if not data.is_dir():
        shutil.rmtree(new, ignore_errors=True)  # of a start that was killed
        options = [
            "-U",
            "mlflow",
            "-A",
            "scram-sha-256",
            f"--pwfile={home}/password",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        done = subprocess.run(
            [f"{programs}/initdb", "-D", str(new), *options], capture_output=True, text=True, **identity
        )
        if done.returncode:
            raise DarkroomError(
                done.stderr.strip(),
                where=str(home),
                remedy="choose a --folder that PostgreSQL's user can reach",
            )
        new.rename(data)
    port = str(_port(0))
    command = [
        programs / "postgres",
        "-D",
        data,
        "-p",
        port,
        "-c",
        f"listen_addresses={HOST}",
        "-c",
        "unix_socket_directories=",
    ]
    asks = [f"{programs}/pg_isready", "-q", "-h", HOST, "-p", port]
    check = _start(
        parts, command, home / "log", signal.SIGINT, lambda: subprocess.run(asks).returncode == 0, **identity
    )
    return {
        "PGHOST": HOST,
        "PGPORT": port,
        "PGUSER": "mlflow",
        "PGPASSWORD": password,
        "PGDATABASE": "postgres",
    }, check


def _start_mlflow(
    parts: ExitStack, folder: Path, port: int, artifacts: str, login: dict[str, str]
) -> Callable[[], None]:
    settings = {
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://",  # libpq takes the rest from PGHOST and its like
        "MLFLOW_AUTH_CONFIG_PATH": str(Path(__file__).with_name("auth.ini")),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _secret(folder / "flask.key"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--allowed-hosts",
        f"{HOST}:{port},localhost:{port}",
        "--serve-artifacts",
        "--artifacts-destination",
        artifacts,
    ]

    def answers() -> bool:
        with suppress(requests.RequestException):
            answer = requests.get(
                f"http://{HOST}:{port}/version", auth=(ADMIN, os.environ[PASSWORD]), timeout=START_SECONDS
            )
            if answer.status_code == 401:
                raise BadInput(
                    "this is not the password of the first start", where=PASSWORD, remedy="export that one"
                )
            return answer.ok
        return False

    return _start(
        parts,
        command,
        folder / "mlflow.log",
        signal.SIGTERM,
        answers,
        cwd=folder,
        env={**os.environ, **login, **settings},
    )


def _start(
    parts: ExitStack, command: list[Any], log: Path, end: int, answers: Callable[[], bool], **more: Any
) -> Callable[[], None]:
    """Start a process in a session of its own and wait for it; returns its check.

    ``parts`` stops it by ``end``, or by SIGKILL.
    """
    with open(log, "wb") as file:
        started = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, preexec_fn=die_with_parent, **more
        )

    def stop() -> None:
        for number in (end, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(started.pid, number)
                started.wait(STOP_SECONDS)

    def check() -> None:
        if started.poll() is not None:
            raise DarkroomError(
                f"it ended: {log.read_text(errors='replace')[-500:]}",
                where=str(log),
                remedy="mend what it says",
            )

    parts.callback(stop)
    for _ in range(10 * START_SECONDS):
        if answers():
            return check
        check()
        time.sleep(0.1)
    raise DarkroomError(f"no answer after {START_SECONDS} s", where=str(log), remedy="mend what it says")


def _secret(path: Path) -> str:
    """The random text of a file that only its owner may read; made at the first call."""
    path.touch(mode=0o600)
    if not path.stat().st_size:
        path.write_text(secrets.token_hex(32))
    return path.read_text()


if __name__ == "__main__":
    run(main, *sys.argv[1:])
