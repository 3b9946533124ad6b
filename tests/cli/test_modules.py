"""Sources that are named in a user's code: `train.py:dataset`, for every command."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laneway import SavableLoader, describe_state
from laneway.cli.main import main
from laneway.cli.modules import load_dataset, names_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB = '''
"""What a job trains on, with code that only runs if it is imported."""
from pathlib import Path

from laneway import Mixture, StatefulShardedDataset

print("imported")
HERE = Path(__file__).parent
web = StatefulShardedDataset(HERE / "web", columns=["id", "text"], shuffle=True, seed=3)
split = web.split({"train": 0.75, "val": 0.25})
train = split.train.skip(5).batch(4).map(lambda batch: [text.upper() for text in batch["text"]])
packs = StatefulShardedDataset(HERE / "web", shuffle=True).count_lengths("input_ids").pack(8).batch(2)
mixture = Mixture({"web": split.train, "code": web.take(0.5)}, {"web": 3, "code": 1}).batch(4)
flat = web.flat_map(lambda row: [row["id"]] * 2).batch(4)
number = 3


def make():
    return train


def fail():
    raise KeyError("gone")
'''


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and the code of a job, whose checkpoints it has too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "job_of_tests", raising=False)
    (tmp_path / "web").mkdir()
    for part in range(2):
        ids = [*range(part * 40, part * 40 + 40)]
        table = pa.table({"id": ids, "input_ids": [[i] * (1 + i % 7) for i in ids], "text": [f"row {i}" for i in ids]})
        pq.write_table(table, tmp_path / "web" / f"part-{part}.parquet", row_group_size=10)
    (tmp_path / "job_of_tests.py").write_text(JOB)
    return tmp_path


@pytest.fixture
def ask(job: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs a command in this process, and returns its answer as JSON, and its exit code."""
    assert job.exists()

    def asked(*arguments: str) -> tuple[Any, int]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return (json.loads(out) if code < 2 else err.removeprefix("imported\n")), code

    return asked


CODE = "job_of_tests.py"


def save(name: str, *steps: int) -> list[Any]:
    """Save a checkpoint after so many steps each, and return the batches."""
    loader = SavableLoader(load_dataset(f"{CODE}:{name}"), num_workers=0)
    batches = iter(loader)
    found: list[Any] = []
    for index, number in enumerate(steps):
        found += [next(batches) for _ in range(number)]
        with open(f"{name}-{index}.json", "w") as file:  # noqa: PTH123 - in the current directory
            json.dump(loader.state_dict(), file)
    return found


def test_only_a_name_in_code_that_is_no_path_is_code(job: Path) -> None:
    (job / "data:v1").mkdir()
    names = ["train.py:data", "jobs/train.py:splits.train", "package.module:make", "corpus:v1"]
    assert [names_code(text) for text in names] == [True] * 4
    paths = [
        "data",
        "data:v1",
        "train.py",
        "s3://bucket/train.py:data",
        "s3://bucket",
        "a=train.py:data",
        "a:b/c",
        "x:*",
    ]
    assert [names_code(text) for text in paths] == [False] * 8


@pytest.mark.parametrize("command", ["inspect", "head", "verify", "plan"])
def test_a_dataset_of_code_is_a_source_of_commands_for_data(ask: Callable[..., Any], command: str) -> None:
    for name in ("make", "split.val", "mixture"):
        facts, code = ask(command, f"{CODE}:{name}")
        assert (code, bool(facts)) == (0, True)
    assert ask(command, "job_of_tests:train")[1] == 0


def test_what_code_selects_is_shown(ask: Callable[..., Any]) -> None:
    dataset = load_dataset(f"{CODE}:train")
    facts, _ = ask("inspect", f"{CODE}:mixture")
    assert [facts["sources"][name]["rows"] for name in ("web", "code")] == [80, 80]
    assert facts["sources"]["code"]["selected_rows"] == 40
    facts, _ = ask("plan", f"{CODE}:train", "--world-size", "2")
    assert facts["batches_per_rank"] == list(dataset.plan(0, 2).batches_per_rank or ())
    facts, _ = ask("head", f"{CODE}:train", "-n", "1")
    assert facts["rows"][0]["item"] == next(iter(dataset))
    facts, _ = ask("head", f"{CODE}:packs", "-n", "1")
    assert [len(pack) for pack in facts["rows"][0]["input_ids"]] == [8, 8]
    facts, _ = ask("bench", f"{CODE}:train", "--workers", "0", "--step-ms", "0", "--seconds", "0.01")
    assert facts["batch_size"] == 4


@pytest.mark.parametrize("name", ["train", "packs", "mixture"])
def test_checkpoints_are_looked_at_with_the_code_of_their_run(ask: Callable[..., Any], job: Path, name: str) -> None:
    source = f"{CODE}:{name}"
    batches = save(name, 2, 3)
    facts, code = ask("state", f"{name}-1.json", "--source", source)
    assert (code, facts["fits"], [each for each in facts if each.startswith("_")]) == (0, True, [])
    unit = "packs" if name == "packs" else "rows"
    shown = repr(describe_state(json.loads((job / f"{name}-1.json").read_text())))
    assert re.search(rf"epoch 0: \d+( of \d+)? {unit} delivered", shown)
    facts, code = ask("audit", f"{name}-0.json", f"{name}-1.json", "--source", source)
    assert (code, facts["is_exact"]) == (0, True)
    facts, code = ask("rows", f"{name}-1.json", "--step", "3", "--source", source, "--show")
    assert (code, facts["is_delivered"]) == (0, True)
    texts = [each["values"]["text"] for each in facts["rows"]]
    if name == "packs":
        assert {each["batch_index"] for each in facts["rows"]} == {0, 1}
        sizes = [each["stop"] - each["start"] for each in facts["rows"]]
        assert sum(sizes) == int((batches[3]["document_ids"] > 0).sum())
    else:
        expected = batches[3] if name == "train" else batches[3]["text"]
        assert [text.upper() for text in texts] == [text.upper() for text in expected]
    row = facts["rows"][1]
    prefix, epoch = (f"{row['source']}=", ["--epoch", "0"]) if name == "mixture" else ("", [])
    for of_state in ([], ["--state", f"{name}-1.json"]):
        facts, code = ask("where", prefix + source, row["path"], str(row["row"]), *epoch, *of_state)
        assert (code, facts["deliveries"][0]["step"]) == (0, 3)
    assert ask("redistribute", f"{name}-1.json", "--world-size", "2", "-o", "out", "--source", source)[1] == 0
    if name != "packs":
        facts, code = ask("report", source, f"{name}-0.json", f"{name}-1.json", "-o", "page.html")
        assert (code, facts["is_exact"], (job / "page.html").exists()) == (0, True, True)


def test_a_checkpoint_of_other_code_does_not_fit(ask: Callable[..., Any]) -> None:
    save("train", 2)
    facts, code = ask("state", "train-0.json", "--source", f"{CODE}:split.val")
    assert (code, facts["fits"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["plan", "gone.py:data"], "gone.py does not exist"),
        (["plan", "gone:data"], "there is neither a file 'gone:data' nor a module 'gone'"),
        (["plan", "job_of_tests.gone:data"], "nor a module 'job_of_tests.gone'"),
        (["plan", f"{CODE}:trian"], f"{CODE} has no 'trian': it has {CODE}:web, {CODE}:train"),
        (["plan", f"{CODE}:number"], f"{CODE}:number is an int: name a StatefulShardedDataset"),
        (["plan", f"{CODE}:HERE.exists"], f"{CODE}:HERE.exists returns a bool"),
        (["plan", f"{CODE}:StatefulShardedDataset"], "name a StatefulShardedDataset, a Mixture, or a function"),
        (["plan", f"{CODE}:fail"], f"{CODE}:fail() fails: KeyError: 'gone' ({CODE}, line "),
        (["plan", f"{CODE}:train", "--batch-size", "3", "--shuffle"], "leave out --batch-size, --shuffle"),
        (["plan", f"{CODE}:flat"], "call plan() on what it is before flat_map()"),
        (["plan", f"web={CODE}:mixture"], "web= names the source of a row, for laneway where"),
        (["bench", f"{CODE}:split.val"], "has no batches"),
        (["bench", "web", "--batch-size", "0"], "batch_size must be"),
        (["convert", f"{CODE}:train", "out"], "convert rewrites whole files"),
        (["where", f"{CODE}:mixture", "part-0.parquet", "1"], f"name that of the row, such as web={CODE}:mixture"),
        (["head", "exits.py:data"], "exits.py can't be imported: it exits. Put what a script runs under"),
        (
            ["head", "wrong.py:data"],
            "wrong.py can't be imported: ZeroDivisionError: division by zero (wrong.py, line 2)",
        ),
        (["head", "json.py:data"], "json.py has the name of a module that is in use, json: rename the file"),
    ],
)
def test_code_that_gives_no_dataset_is_an_error(
    ask: Callable[..., Any], job: Path, arguments: list[str], problem: str
) -> None:
    (job / "exits.py").write_text("raise SystemExit(0)\n")
    (job / "wrong.py").write_text("x = 0\n1 / x\n")
    (job / "json.py").write_text("")
    error, code = ask(*arguments)
    assert (code, problem in error, "Traceback" in error) == (2, True, False), error


def test_an_error_of_a_users_function_is_no_failed_check(ask: Callable[..., Any], job: Path) -> None:
    (job / CODE).write_text(JOB + "\nbroken = web.map(lambda row: row['gone'])\n")
    error, code = ask("head", f"{CODE}:broken")
    assert (code, "KeyError: 'gone'" in error) == (2, True)
