"""Nothing waits for ever: every call that waits for a process, a thread, a server or a lock has a limit."""

import ast
from functools import cache

import pytest

from pipeline import environment
from tests.test_walls import FILES, named

# Calls that wait, by the last part of their name, and the position of the limit among their arguments; None:
# by keyword alone.
WITH_LIMIT = {
    **dict.fromkeys(("run", "call", "check_call", "check_output"), None),  # of subprocess
    **dict.fromkeys(("get", "post", "put", "delete", "head", "request"), None),  # of requests and Ray
    **dict.fromkeys(("FileLock", "HttpConfig", "urlopen"), None),
    "create_connection": 1,
    **dict.fromkeys(("communicate", "HTTPConnection", "HTTPSConnection"), None),
    **dict.fromkeys(("wait", "join", "result", "acquire"), 0),  # of processes, threads, futures and locks
}
MODULES = {
    **dict.fromkeys(("run", "call", "check_call", "check_output"), ("subprocess",)),
    **dict.fromkeys(("post", "put", "delete", "head", "request"), ("requests", "session")),
    "get": ("requests", "session", "ray"),
}
OWN = "it waits for work of this process, which has its own limits"
TRAINS = "a training has no limit; the child ends with this process, and its own waits have limits"
# (file, call) -> why it has no limit.
WITHOUT = {
    ("pipeline/leaderboard/trainings.py", "subprocess.run"): TRAINS,
    ("pipeline/tracking/reproduce.py", "subprocess.run"): TRAINS,
    ("pipeline/search/trials.py", "wait"): TRAINS,
    ("pipeline/search/trials.py", "thread.result"): "it has ended",
    ("pipeline/threads.py", "result"): OWN,
    ("pipeline/core/feed.py", "result"): OWN,
    ("pipeline/openmp.py", "team.join"): OWN,
    ("pipeline/openmp.py", "watch.join"): OWN,
    ("pipeline/process.py", "FileLock"): "it is acquired with a limit of 0",
    ("pipeline/launch/storage.py", "thread.join"): "each request of the storage has a limit",
}
# The files that start processes without waiting for them at once, and what limits those.
STARTED = {
    "pipeline/data/transfer.py": "communicate() has a limit",
    "pipeline/repro.py": TRAINS,
    "pipeline/retraining/workspace.py": "wait() has the deadline of the retraining as its limit",
}


def words(node):
    """The parts of the name of what is called: subprocess.run -> [subprocess, run]."""
    if isinstance(node, ast.Attribute):
        return [*words(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def has_limit(call, name):
    """Whether a limit is among the arguments. It must be written there, not in ``**options``."""
    position = WITH_LIMIT[name]
    given = {keyword.arg for keyword in call.keywords}
    if name == "wait" and isinstance(call.func, ast.Name):  # of concurrent.futures
        position = 1
    return "timeout" in given or (position is not None and len(call.args) > position)


def waits(call):
    """The name of what is called if it waits without a limit, or else ''."""
    *owner, name = words(call.func)
    if name not in WITH_LIMIT or (name in MODULES and not (owner and owner[-1] in MODULES[name])):
        return ""
    if name == "join" and (call.args or not owner[-1:] or not owner[-1]):
        return ""  # of a text or a path
    return "" if has_limit(call, name) else ".".join(filter(None, [*owner[-1:], name]))


@cache
def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_wait_has_a_limit(path):
    found = {(named(path), waits(call)) for call in calls(path)} - {(named(path), "")}
    assert found <= WITHOUT.keys()


def test_the_exceptions_are_those_of_the_code():
    found = {(named(path), waits(call)) for path in FILES for call in calls(path) if waits(call)}
    assert found >= WITHOUT.keys()
    started = {named(path) for path in FILES for call in calls(path) if words(call.func)[-1] == "Popen"}
    assert started == STARTED.keys()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("subprocess.run(command, check=True)", "subprocess.run"),
        ("subprocess.run(command, timeout=3)", ""),
        ("requests.post(url)", "requests.post"),
        ("requests.get(url, timeout=5)", ""),
        ("options.get(name)", ""),
        ("ray.get(reference)", "ray.get"),
        ("process.wait()", "process.wait"),
        ("process.wait(3)", ""),
        ("wait(futures)", "wait"),
        ("wait(futures, 3)", ""),
        ("subprocess.run(command, **options)", "subprocess.run"),
        ("thread.join()", "thread.join"),
        ("', '.join(names)", ""),
        ("queue.popleft().result()", "result"),
        ("FileLock(path)", "FileLock"),
        ("socket.create_connection(address)", "socket.create_connection"),
        ("socket.create_connection(address, 3)", ""),
        ("urllib.request.urlopen(url)", "request.urlopen"),
    ],
)
def test_a_wait_without_a_limit_is_found(code, name):
    (call, *_) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert waits(call) == name


def test_the_libraries_that_wait_for_servers_and_workers_have_limits():
    """Their defaults: MLflow two minutes and seven times, Ray for ever in two places."""
    for name in (
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
    ):
        assert 0 < float(environment.QUIET[name]) <= 300
