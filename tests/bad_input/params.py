"""P1: values of params.yaml, files that are no plain mapping, and variables of the environment."""

import os
from pathlib import Path

from tests.bad_input.case import Build, Case, with_data, write
from tests.project import PARAMS, TRAINING

DEEP = 5_000
BIG = 10_000_000

# A value of the section data: where and remedy.
DATA = {
    "a misspelt key": ({"sorce": "digits"}, "data.sorce|did you mean 'source'?"),
    "an unknown key": ({"zzz": 1}, "data.zzz|known here: bit_depth, color, fit, folder"),
    "text for a number": ({"seed": "one"}, "data.seed|correct the value"),
    "a number in quotes": ({"image_size": "8"}, "data.image_size|correct the value"),
    "a fraction for an integer": ({"seed": 1.5}, "data.seed|correct the value"),
    "true for a number": ({"seed": True}, "data.seed|correct the value"),
    "null for a number": ({"seed": None}, "data.seed|correct the value"),
    "a negative seed": ({"seed": -1}, "data.seed|greater than or equal to 0"),
    "a seed of 32 bits": ({"seed": 2**31}, "data.seed|less than 2147483648"),
    "a number for text": ({"source": 1}, "data.source|valid string"),
    "a list for text": ({"source": ["digits"]}, "data.source|valid string"),
    "an unknown source": ({"source": "mnst"}, "data.source|did you mean 'mnist'?"),
    "a source with a path": ({"source": "../mnist"}, "data.source: there is no source '../mnist'"),
    "an unknown choice": ({"color": "blue"}, "data.color|'source', 'grey' or 'rgb'"),
    "a huge size": ({"image_size": 100_000}, "data.image_size|less than or equal to 1024"),
    "a size of one pixel": ({"image_size": 1}, "data.image_size|at least 4"),
    "a negative size": ({"image_size": -8}, "data.image_size|at least 4"),
    "no validation split": ({"validation_fraction": 0}, "data.validation_fraction|greater than 0"),
    "only a test split": ({"test_fraction": 0.9}, "data.test_fraction|less than or equal to 0.5"),
    "a negative fraction": ({"max_bad_fraction": -0.1}, "data.max_bad_fraction|greater than or equal to 0"),
    "a broken pattern": ({"group": "(p"}, "data.group|is not a regular expression"),
    "a pattern without a group": ({"group": "p"}, "data.group|has 0 groups in parentheses, not one"),
    "two wrong values": ({"source": 1, "seed": "x"}, "data.source|also |data.seed"),
    "a shell command as a source": ({"source": "x; touch hacked"}, "data.source: there is no source"),
    "a command substitution": (
        {"folder": "$(touch hacked)", "source": "folder"},
        "no such folder or archive",
    ),
    "a template": ({"folder": "${data.seed}", "source": "folder"}, "no such folder or archive"),
    "a folder with a null byte": ({"folder": "a\0b", "source": "folder"}, "no such folder or archive"),
    "no folder": ({"folder": "", "source": "folder"}, "data.folder: is empty"),
    "a folder that is missing": ({"folder": "nowhere", "source": "folder"}, "no such folder or archive"),
}
# A section as a whole.
SECTIONS: dict[str, tuple[dict[str, object], str]] = {
    "a list for a section": ({"data": [1, 2]}, "data: |correct the value"),
    "text for a section": ({"data": "digits"}, "data: |correct the value"),
    "an empty section": ({"data": None}, "data: |correct the value"),
    "an unknown section": ({"gn": {}}, "gn: no such section|did you mean 'gan'?"),
    "an unknown classifier": (
        {"evaluate": {"classifier": "cn"}},
        "evaluate.classifier: there is no model 'cn'|did you mean 'cnn'?",
    ),
    "a classifier that is none": (
        {"evaluate": {"classifier": "gan"}},
        "evaluate.classifier: the model 'gan' is not a classifier",
    ),
    "an unknown model to evaluate": ({"evaluate": {"models": ["gn"]}}, "evaluate.models|did you mean 'gan'?"),
    "a feature network that is missing": (
        {"evaluate": {"feature_network": "x.onnx"}},
        "evaluate.feature_network: no such file or folder: x.onnx",
    ),
    "a misspelt key in depth": (
        {"cnn": {"model": {"optimizer": {"learning_rat": 1}}}},
        "cnn.model.optimizer.learning_rat: no such setting|'learning_rate'",
    ),
    "a layer of no width": (
        {"cnn": {"model": {"channels": [0]}}},
        "cnn.model.channels.0|greater than or equal",
    ),
    "no layers": ({"cnn": {"model": {"channels": []}}}, "cnn.model.channels|at least 1 item"),
    "a dense layer of no width": ({"cnn": {"model": {"dense": [0]}}}, "cnn.model.dense.0"),
    "settings that contradict": ({"cnn": {"model": {"crop": 1, "shift": 0.1}}}, "crop and shift both move"),
    "a setting without effect": ({"cnn": {"model": {"depth": 3}}}, "depth is for architecture: residual"),
    "a dropout of 1": ({"cnn": {"model": {"dropout": 1.0}}}, "cnn.model.dropout|less than 1"),
    "no latent": ({"gan": {"model": {"latent_size": 0}}}, "gan.model.latent_size"),
    "no steps": ({"cnn": {"training": {**TRAINING, "num_steps": 0}}}, "cnn.training.num_steps"),
    "an empty batch": ({"cnn": {"training": {**TRAINING, "batch_size": 0}}}, "cnn.training.batch_size"),
    "a warm-up without an end": (
        {"cnn": {"training": {**TRAINING, "schedule": {"warmup_steps": 60}}}},
        "cnn.training.schedule.warmup_steps|shorten it",
    ),
    "nothing to monitor": ({"cnn": {"training": {**TRAINING, "keep": "best"}}}, "cnn.training.monitor"),
    "faults in three sections": (
        {"data": with_data(seed=-1), "cnn": {"modl": {}}, "evaluate": {"classifier": "x"}},
        "3 settings cannot be used|data.seed|cnn.modl|evaluate.classifier",
    ),
}
# The text of the file.
FILES: dict[str, tuple[str | bytes, str]] = {
    "not a number": ("data: {seed: .nan}", "not plain and finite"),
    "infinity": ("data: {seed: .inf}", "not plain and finite"),
    "a number that is too large": ("data: {validation_fraction: 1e999}", "not plain and finite"),
    "a date": ("data: {seed: 2020-01-01}", "not plain and finite"),
    "a key twice": ("data: {seed: 1, seed: 2}", "cannot be read|seed"),
    "an alias": ("data: &a {seed: 1}\nother: *a", "aliases (*name) are not accepted|write the value out"),
    "a billion laughs": (
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
        "aliases (*name) are not accepted",
    ),
    "a Python object": ("data: !!python/object/apply:os.system ['touch hacked']", "cannot be read"),
    "an unknown tag": ("data: !shell 'touch hacked'", "cannot be read"),
    "a tab": ("data:\n\tseed: 1", "line 2"),
    "a bracket that is not closed": ("data: {seed: 1", "cannot be read"),
    "lists 5,000 deep": ("data: " + "[" * DEEP + "]" * DEEP, "line 1: is nested more than 50 deep"),
    "mappings 5,000 deep": ("data: " + "{a: " * DEEP + "1" + "}" * DEEP, "is nested more than 50 deep"),
    "indented 200 deep": (
        "\n".join(" " * n + "a:" for n in range(200)),
        "line 51: is nested more than 50 deep",
    ),
    "a list": ("- 1\n- 2", "is not a mapping of sections"),
    "only text": ("just text", "is not a mapping of sections"),
    "an empty file": ("", "is not a mapping of sections"),
    "two documents": ("data: {}\n---\ndata: {}", "cannot be read"),
    "UTF-16": ("data: {seed: 1}".encode("utf-16"), "is not UTF-8"),
    "a byte that is not UTF-8": (b"data: \xff", "is not UTF-8"),
    "a null byte": (b"data: {seed: 1}\0", "cannot be read"),
    "10 MB": ("data: {seed: 1}\n#" + "x" * BIG, "larger than 1,000,000 bytes"),
    "a misspelt section": ("dta: {seed: 1}", "dta: no such section|did you mean 'data'?"),
    "no section data": ("cnn: {}", "has no section 'data'|add a section 'data:'"),
    "a conflict of git": ("<<<<<<< HEAD\ndata: {}\n=======\ndata: {seed: 1}\n>>>>>>> x\n", "cannot be read"),
}


def _remove(folder: Path) -> None:
    (folder / "params.yaml").unlink()


def _replace(make: Build) -> Build:
    def build(folder: Path) -> None:
        _remove(folder)
        make(folder / "params.yaml")

    return build


# What is not a file at all.
PATHS: dict[str, tuple[Build, str]] = {
    "no file": (_remove, "no such file|run from the project's root"),
    "a folder": (_replace(Path.mkdir), "is not a regular file"),
    "a FIFO": (_replace(os.mkfifo), "is not a regular file"),
    "a link to itself": (_replace(lambda path: path.symlink_to(path)), "cannot be read (Too many levels"),
    "a link to nothing": (_replace(lambda path: path.symlink_to("nowhere")), "no such file"),
}
VARIABLES = {
    "half a worker": ("DARKROOM_WORKERS", "1.5", "use auto or a number from 1 to 10000"),
    "no worker": ("DARKROOM_WORKERS", "0", "use auto or a number from 1 to 10000"),
    "an unknown device": ("DARKROOM_DEVICE", "gpu", "use auto, cpu, cuda or mps"),
    "negative threads": ("DARKROOM_THREADS", "-1", "use a number from 0 to 10000"),
    "a price in words": ("DARKROOM_PRICE_PER_HOUR", "much", "use a number from 0"),
    "a storage that is a file": ("DARKROOM_STORAGE", "params.yaml", "is not a folder"),
    "a tracking address that is a word": (
        "MLFLOW_TRACKING_URI",
        "garbage",
        "use an address such as https://",
    ),
    "a tracking address that is a folder": ("MLFLOW_TRACKING_URI", "./mlruns", "use an address such as"),
    "a tracking address of a file store": ("MLFLOW_TRACKING_URI", "file:///tmp/x", "use an address such as"),
    "an unknown kind of database": (
        "MLFLOW_TRACKING_URI",
        "oracle://u:secret@h/d",
        "'oracle://***@h/d' cannot",
    ),
}


def _text(text: str | bytes) -> Build:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "params.yaml").write_bytes(content) and None


def _sections(sections: dict[str, object]) -> Build:
    return lambda folder: write(folder, **sections)


CASES = [
    *(Case(f"{name}", _sections({"data": with_data(**data)}), words) for name, (data, words) in DATA.items()),
    *(Case(name, _sections(sections), words) for name, (sections, words) in SECTIONS.items()),
    *(Case(name, _text(text), f"params.yaml|{words}") for name, (text, words) in FILES.items()),
    *(Case(name, build, f"params.yaml|{words}") for name, (build, words) in PATHS.items()),
    *(
        Case(
            name, lambda folder: write(folder, **PARAMS), f"{variable}: |{words}", variables={variable: text}
        )
        for name, (variable, text, words) in VARIABLES.items()
    ),
]
