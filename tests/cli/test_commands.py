"""The commands, on real files and states of real loaders."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from laneway import Checkpoints, Manifest, Mixture, SavableLoader, StatefulShardedDataset
from laneway.cli.arguments import parser
from laneway.cli.bench import bottleneck
from laneway.cli.main import main
from laneway.delivery.metrics import StageSeconds
from laneway.formats import FORMATS
from tests.corpora import write_corpus

if TYPE_CHECKING:
    from collections.abc import Callable

# What dcp.save says where no_dist is given.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

ROOT = Path(__file__).resolve().parents[2]
NUM_ROWS = 48


def command() -> list[str]:
    """Return the command line of the entry point, as it is installed, or else of the module."""
    script = Path(sys.executable).with_name("laneway")
    return [str(script)] if script.exists() else [sys.executable, "-m", "laneway"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, without a terminal."""
    return subprocess.run([*command(), *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def make_loaders(path: Path, world_size: int, **arguments: Any) -> list[SavableLoader]:
    options = {"batch_size": 3, "shuffle": True, "seed": 4, "shard_rows": 4, "window_bytes": 200, **arguments}
    return [
        SavableLoader(StatefulShardedDataset(path, **options, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]


def take(loaders: list[SavableLoader], steps: int) -> list[list[list[int]]]:
    passes = [iter(loader) for loader in loaders]
    return [[next(each)["id"].tolist() for each in passes] for _ in range(steps)]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with data, and with the checkpoints of a run on 2 ranks, and then on one, in every form."""
    write_corpus(tmp_path / "data")
    loaders = make_loaders(tmp_path / "data", 2)
    take(loaders, 3)
    state = loaders[0].state_dict()
    (tmp_path / "step-3.json").write_text(json.dumps(state))
    torch.save({"loader": state, "model": torch.zeros(2)}, tmp_path / "step-3.pt")
    for rank, loader in enumerate(loaders):
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(loader.save_state_rank()))
    (resumed,) = make_loaders(tmp_path / "data", 1, batch_size=2)
    resumed.load_state_dict(state)
    take([resumed], 2)
    (tmp_path / "step-10.json").write_text(json.dumps(resumed.state_dict()))
    return tmp_path


@pytest.fixture
def ask(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs a command in this process, and returns its answer as JSON, and its exit code."""
    monkeypatch.chdir(job)

    def asked(*arguments: str) -> tuple[Any, int]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return (json.loads(out) if code < 2 else err), code

    return asked


def test_the_entry_point_is_the_main_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = scripts["laneway"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_help_is_one_screen_of_80_columns() -> None:
    lines = parser().format_help().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_installed_command_answers_and_exits_as_it_says(job: Path) -> None:
    shown = run("inspect", "data", cwd=job)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "rows         48" in shown.stdout
    assert max(map(len, shown.stdout.split("advice")[0].splitlines()[1:])) <= 80
    refused = run("state", "missing.json", cwd=job)
    assert refused.returncode == 2
    assert refused.stderr == (
        "laneway state: missing.json does not exist: give a file or folder in which a state was saved\n"
    )
    assert run("nothing", cwd=job).returncode == 2


def test_an_output_that_the_shell_has_closed_is_no_error(job: Path) -> None:
    program = shlex.join(command())
    for arguments, code in ((f"inspect {job / 'data'} >&-", 0), ("state missing.json 2>&-", 2)):
        done = subprocess.run(f"{program} {arguments}", shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")


def test_a_pipe_that_is_closed_early_is_no_error(job: Path) -> None:
    pq.write_table(pa.table({"x": range(100_000)}), job / "many.parquet")
    process = subprocess.Popen(
        [*command(), "head", "many.parquet", "-n", "100000"], cwd=job, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().strip() == b"x"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_inspect_says_what_there_is_and_what_to_change(ask: Callable[..., Any], job: Path) -> None:
    facts, code = ask("inspect", "data")
    assert (code, facts["files"], facts["rows"], facts["blocks"]) == (0, 7, NUM_ROWS, 10)
    assert facts["schema"] == {"id": "int64", "text": "string", "x": "float"}
    assert facts["rows_per_block"] == [1, 3, 13]
    pq.write_table(
        pa.table({"x": [b"a" * (3 << 20)] * 50}), job / "large.parquet", compression="none", use_dictionary=False
    )
    advice = ask("inspect", "large.parquet")[0]["advice"]
    assert advice[0].startswith("the largest row group takes 150 MiB decoded")
    assert any("a row takes 3 MiB decoded" in each for each in advice)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_be_chosen(name: str) -> None:
    assert parser().parse_args(["inspect", "data", "--format", name]).format == name


def test_a_format_is_chosen_for_files_that_do_not_tell(ask: Callable[..., Any], job: Path) -> None:
    (job / "log").write_text('{"x": 1}\n{"x": 2}\n')
    facts, code = ask("inspect", "log", "--format", "jsonl")
    assert (code, facts["format"], facts["rows"]) == (0, "jsonl", 2)


def test_a_format_that_is_none_is_refused_with_those_that_there_are(
    ask: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        ask("inspect", "data", "--format", "xml")
    error = capsys.readouterr().err
    assert [name for name in FORMATS if f"'{name}'" not in error] == []


def test_blocks_have_the_name_of_their_format(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(job / "arrow", "arrow-file")
    (job / "lines.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    monkeypatch.chdir(job)
    assert main(["verify", "arrow"]) == 0
    assert capsys.readouterr().out == "7 files, 10 record batches, 48 rows: no damage\n"
    assert main(["inspect", "arrow"]) == 0
    shown = capsys.readouterr().out
    assert "record batches  10, of 1 to 13 rows" in shown
    assert "- keep world_size * num_workers <= 10: with more workers than record batches" in shown
    assert main(["inspect", "lines.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "blocks       1, of 2 rows" in shown
    assert "- keep world_size * num_workers <= 1: with more workers than blocks" in shown
    assert main(["report", "arrow", "-o", "report.html"]) == 0
    page = (job / "report.html").read_text(encoding="utf-8")
    assert ("Record batches, decoded" in page, ">10 record batches, of " in page) == (True, True)


def test_head_shows_rows_of_some_columns_that_match(ask: Callable[..., Any]) -> None:
    facts, code = ask("head", "data", "-n", "2", "--columns", "id,x", "--filter", '[["id", ">", 5]]')
    assert (code, facts["rows"]) == (0, [{"id": 6, "x": 3.0}, {"id": 7, "x": 3.5}])


def test_plan_and_where_agree_with_what_is_delivered(ask: Callable[..., Any], job: Path) -> None:
    options = ["--batch-size", "3", "--shuffle", "--seed", "4", "--world-size", "2", "--window-bytes", "200"]
    facts, _ = ask("plan", "data", *options)
    assert (facts["num_steps"], facts["batches_per_rank"], facts["rows_repeated"]) == (8, [8, 8], 0)
    loaders = make_loaders(job / "data", 2, shard_rows=None)
    steps = take(loaders, 8)
    facts, code = ask("where", "data", "part-000.parquet", "7", *options)
    (found,) = facts["deliveries"]
    assert code == 0
    assert steps[found["step"]][found["rank"]][found["batch_index"]] == 7


@pytest.mark.parametrize("form", ["step-3.json", "step-3.pt", "rank-*.json", "dcp", "run", "run/000001-step-3"])
def test_a_state_is_read_in_every_form(ask: Callable[..., Any], job: Path, form: str) -> None:
    state = json.loads((job / "step-3.json").read_text())
    if form == "dcp":
        save_dcp({"app": {"loader": state, "w": torch.zeros(2)}}, checkpoint_id=str(job / "dcp"), no_dist=True)
    if form.startswith("run"):
        with Checkpoints(job / "run") as checkpoints:
            (single,) = make_loaders(job / "data", 1)
            single.load_state_dict(state)
            checkpoints.save(3, loader=single, model=nn.Linear(1, 1))
    facts, code = ask("state", form, "--source", "data")
    assert (code, facts["fits"], facts["num_delivered"], facts["num_rows"]) == (0, True, 18, NUM_ROWS)


def test_states_are_compared_and_a_source_that_does_not_fit_is_told(ask: Callable[..., Any], job: Path) -> None:
    facts, code = ask("state", "step-3.json", "--diff", "step-10.json")
    assert code == 1
    assert ["num_delivered", 18, 22] in facts["differences"]["progress"]
    (job / "data" / "part-002.parquet").unlink()
    facts, code = ask("state", "step-3.json", "--source", "data")
    assert (code, facts["fits"]) == (1, False)
    assert "part-002.parquet is gone" in facts["problem"]


def test_rows_of_a_step_are_those_that_were_delivered(ask: Callable[..., Any], job: Path) -> None:
    expected = take(make_loaders(job / "data", 2), 3)
    for step in range(3):
        facts, code = ask("rows", "step-10.json", "--source", "data", "--step", str(step), "--show")
        assert (code, facts["is_delivered"]) == (0, True)
        assert [each["values"]["id"] for each in facts["rows"]] == [row for rank in expected[step] for row in rank]
    facts, _ = ask("rows", "step-3.json", "--source", "data", "--step", "3", "--rank", "1", "--world-size", "3")
    assert {each["rank"] for each in facts["rows"]} == {1}
    error, code = ask("rows", "step-3.json", "--source", "data", "--step", "99")
    assert (code, error) == (2, "laneway rows: there is no step 99: epoch 0 has 8 steps\n")


def test_the_state_of_a_start_does_not_say_what_a_step_is(ask: Callable[..., Any], job: Path) -> None:
    (job / "start.json").write_text(json.dumps(make_loaders(job / "data", 1)[0].state_dict()))
    error, code = ask("rows", "start.json", "--source", "data", "--step", "0")
    assert (code, "doesn't say how many rows a batch has" in error) == (2, True)
    assert ask("state", "start.json", "--source", "data")[0]["fits"] is True


def test_audit_proves_a_run_or_says_what_is_missing(ask: Callable[..., Any]) -> None:
    facts, code = ask("audit", "step-10.json", "rank-*.json", "--as-given", "--source", "data")
    assert (code, facts["is_exact"]) == (1, False)
    # In the order of their numbers.
    facts, code = ask("audit", "step-10.json", "step-3.json", "--source", "data")
    assert (code, facts["is_exact"], facts["epochs"][0]["num_delivered"]) == (0, True, 22)
    facts, code = ask("audit", "step-10.json", "--source", "data")
    (finding,) = facts["findings"]
    assert (code, finding["kind"], finding["num_rows"]) == (1, "unknown", 18)
    assert finding["ranges"][0].keys() == {"path", "start", "stop"}


def test_redistribute_writes_a_state_for_each_rank_once(ask: Callable[..., Any], job: Path) -> None:
    facts, code = ask("redistribute", "step-3.json", "--world-size", "3", "--workers", "2", "-o", "out")
    assert (code, len(facts["files"])) == (0, 3)
    loaders = make_loaders(job / "data", 3)
    for rank, loader in enumerate(loaders):
        loader.restore_state_rank(json.loads((job / "out" / f"rank-{rank}.json").read_text()))
    error, code = ask("redistribute", "step-3.json", "--world-size", "3", "-o", "out")
    assert code == 2
    assert "out/rank-0.json exists already" in error


def test_verify_names_damaged_row_groups(ask: Callable[..., Any], job: Path) -> None:
    assert ask("verify", "data") == ({"files": 7, "blocks": 10, "rows": NUM_ROWS, "damaged": []}, 0)
    path = job / "data" / "part-003.parquet"
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(1).dictionary_page_offset
    assert start is not None
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    facts, code = ask("verify", "data")
    (damaged,) = facts["damaged"]
    assert (code, damaged["path"], damaged["block"]) == (1, "part-003.parquet", 1)


def test_verify_names_every_file_whose_footer_is_damaged_and_reads_the_others(
    ask: Callable[..., Any], job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in (0, 5):
        path = job / "data" / f"part-00{part}.parquet"
        path.write_bytes(path.read_bytes()[:200])
    facts, code = ask("verify", "data")
    assert (code, [each["path"] for each in facts["damaged"]]) == (1, ["part-000.parquet", "part-005.parquet"])
    assert (facts["files"], 0 < facts["rows"] < NUM_ROWS) == (7, True)
    assert main(["verify", "data"]) == 1
    assert "part-005.parquet is not a Parquet file, or it is truncated" in capsys.readouterr().out
    for part in (1, 2, 3, 4, 6):
        (job / "data" / f"part-00{part}.parquet").unlink()
    assert ask("verify", "data")[1] == 2


def test_bench_measures_utilisation(ask: Callable[..., Any]) -> None:
    facts, code = ask("bench", "data", "--batch-size", "4", "--workers", "0", "--step-ms", "1", "--seconds", "0.05")
    (measured,) = facts["runs"]
    assert code == 0
    assert 0 < measured["utilisation"] <= 1
    assert measured["rows_per_s"] > 0
    assert measured["bound_by"] in {"step", "read", "decode", "order", "convert", "transform", "send"}
    assert measured["stage_ms"]["decode"] > 0
    assert "plot" not in facts


def test_bench_measures_stages_of_workers_and_draws_them(ask: Callable[..., Any], job: Path) -> None:
    command = ["bench", "data", "--batch-size", "4", "--step-ms", "0", "--seconds", "0.3"]
    facts, code = ask(*command, "--workers", "0,1", "--plot", "fed.svg")
    assert (code, facts["plot"]) == (0, "fed.svg")
    assert [each["stage_ms"]["send"] > 0 for each in facts["runs"]] == [False, True]
    root = ET.fromstring((job / "fed.svg").read_text(encoding="utf-8"))
    said = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    for each in facts["runs"]:
        workers = f"{each['workers']} worker{'' if each['workers'] == 1 else 's'}"
        assert any(text.startswith(f"{workers}: ") for text in said)
        assert f"{workers}, decode: {each['stage_ms']['decode']:.3g} ms" in said
    error, code = ask(*command, "--plot", "fed.png")
    assert (code, "--plot must end with .svg" in error) == (2, True)


def test_a_glob_that_matches_folders_of_checkpoints_says_what_to_give(ask: Callable[..., Any], job: Path) -> None:
    for name in ("000001-step-1", "000002-step-2"):
        (job / "run" / name).mkdir(parents=True)
    error, code = ask("audit", "run/*")
    assert (code, "2 folders do: name one of them, or the folder that they are in" in error) == (2, True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"wait": 3.0, "read": 5.0, "decode": 2.0}, "read"),
        ({"wait": 3.0, "read": 1.0, "decode": 2.0, "order": 1.5}, "decode"),
        ({"wait": 3.0, "decode": 1.0, "order": 1.5}, "order"),
        ({"wait": 1.0, "decode": 9.0, "convert": 1.5}, "convert"),
        ({"wait": 1.0, "decode": 9.0, "transform": 1.5}, "transform"),
        ({"wait": 1.0, "decode": 9.0, "transform": 1.5, "send": 2.0}, "send"),
    ],
)
def test_the_bottleneck_is_what_the_main_thread_waits_for_or_does(seconds: dict[str, float], expected: str) -> None:
    assert bottleneck(StageSeconds(**seconds)) == expected


def test_what_the_command_line_can_not_open_is_refused_with_the_way_out(ask: Callable[..., Any], job: Path) -> None:
    data = StatefulShardedDataset(job / "data")
    (train, _) = data.split({"train": 0.5, "val": 0.5})
    for dataset, way_out in (
        (data.filter([("id", ">", 2)]).batch(2), "give the same --filter"),
        (train.batch(2), "name the dataset in your code, as --source train.py:dataset"),
        (data.flat_map(lambda row: [row, row]), "leave out --source"),
    ):
        loader = SavableLoader(dataset)
        next(iter(loader))
        (job / "chosen.json").write_text(json.dumps(loader.state_dict()))
        error, code = ask("state", "chosen.json", "--source", "data")
        assert (code, way_out in error) == (2, True)
    (job / "chosen.json").unlink()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a JSON file, nor one of torch.save"),
        (b'{"a": 1}', "holds no state of laneway"),
        (b'{"format": "laneway.state"}', "this state has format version None"),
        (b"PK\x03\x04 and no zip", "is not a file of torch.save"),
    ],
)
def test_what_is_no_state_is_refused(ask: Callable[..., Any], job: Path, content: bytes, problem: str) -> None:
    (job / "foreign").write_bytes(content)
    for arguments in (
        ["state", "foreign"],
        ["audit", "foreign"],
        ["redistribute", "foreign", "--world-size", "2", "-o", "o"],
    ):
        error, code = ask(*arguments)
        assert code == 2
        assert problem in error
        assert "Traceback" not in error


@pytest.fixture
def mixed(job: Path) -> Path:
    """The same folder, with the checkpoints of a mixture of two sources, on one rank and then on two."""
    state = None
    for name, world_size in (("mixture-1.json", 1), ("mixture-2.json", 2)):
        for rank in range(world_size):
            data = StatefulShardedDataset(job / "data", seed=3)
            sources = {"a": data, "b": data.shuffle(3)}
            mixture = Mixture(sources, {"a": 1, "b": 3}, rank=rank, world_size=world_size).batch(4)
            loader = SavableLoader(mixture, num_workers=0)
            if state is not None:
                loader.load_state_dict(state)
            batches = iter(loader)
            for _ in range(5):
                next(batches)
        state = loader.state_dict()
        (job / name).write_text(json.dumps(state))
    return job


SOURCES = ["--source", 'a={"path": "data", "seed": 3}', "--source", 'b={"path": "data", "shuffle": true, "seed": 3}']


def test_the_rows_of_a_mixture_are_told_by_source(ask: Callable[..., Any], mixed: Path) -> None:
    assert mixed.exists()
    facts, code = ask("state", "mixture-2.json", "--diff", "mixture-1.json", *SOURCES)
    assert (code, facts["fits"]) == (1, True)
    assert [(each["name"], each["weight"], each["num_delivered"]) for each in facts["sources"]] == [
        ("a", 1, 15),
        ("b", 3, 45),
    ]
    assert ["source 'b', num_delivered", 45, 15] in facts["differences"]["progress"]
    facts, code = ask("rows", "mixture-2.json", "--step", "2", "--show", *SOURCES)
    assert (code, facts["is_delivered"], len(facts["rows"])) == (0, True, 4)
    assert [each["source"] for each in facts["rows"]].count("b") == 3
    row = facts["rows"][1]
    assert set(row["values"]) == {"id", "text", "x"}
    own, other = sorted(SOURCES[1::2], key=lambda text: text[0] != row["source"])
    asked = [own, row["path"], str(row["row"]), "--state", "mixture-2.json", "--epoch", str(row["epoch"])]
    facts, code = ask("where", *asked, "--source", other)
    assert (code, facts["deliveries"]) == (0, [{"step": 2, "rank": 0, "worker": None, "batch_index": 1}])
    facts, code = ask("redistribute", "mixture-2.json", "--world-size", "3", "-o", "out", *SOURCES)
    assert (code, len(facts["files"])) == (0, 3)


def test_the_checkpoints_of_a_mixture_are_audited(ask: Callable[..., Any], mixed: Path) -> None:
    assert mixed.exists()
    facts, code = ask("audit", "mixture-1.json", "mixture-2.json", *SOURCES)
    assert (code, facts["is_exact"]) == (0, True)
    assert [(each["source"], each["epoch"], each["num_delivered"]) for each in facts["epochs"]] == [
        ("a", 0, 15),
        ("b", 0, 45),
    ]
    facts, code = ask("audit", "mixture-2.json", *SOURCES)
    assert (code, {each["source"] for each in facts["findings"]}) == (1, {"a", "b"})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["rows", "mixture-1.json", "--step", "0", "--source", "data"], "its sources need names"),
        (["rows", "mixture-1.json", "--step", "0", "--source", "a=data"], "source 'b' is not given: add --source b="),
        (["state", "mixture-1.json", *SOURCES, "--source", "a=data"], "source 'a' is given twice"),
        (["audit", "mixture-1.json"], "of a mixture of a, b: pass the Mixture as source"),
        (["state", "mixture-1.json", *SOURCES, "--filter", "[]"], "--filter is for a single dataset"),
        (["state", "mixture-1.json", *SOURCES, "--source", "c={1"], "--source must be JSON, such as"),
        (["state", "mixture-1.json", *SOURCES, "--source", 'c={"pth": 1}'], "knows no 'pth'"),
        (["state", "mixture-1.json", *SOURCES, "--source", 'c={"seed": 1}'], "lacks the path"),
        (["state", "mixture-1.json", *SOURCES, "--weights", '{"a": 1}'], "weights must name each source once"),
        (["state", "step-3.json", *SOURCES], "2 sources are given, and only a mixture has several"),
        (["state", "step-3.json", "--source", "data", "--stop", "9"], "--stop is for a mixture"),
        (["where", "data", "p", "0", "--source", "a=data"], "give it with --state"),
        (["report", "a=data", "--source", "b=data", "-o", "r.html"], "or name the mixture in your code"),
        (["report", "data", "-o", "gone/r.html"], "--output is gone/r.html, but there is no folder 'gone': create it"),
        (["head", "data", "-n", "-1"], "-n must be at least 0, not -1"),
        (["where", "data", "p", "0", "--state", "step-3.json", "--seed", "1"], "leave out --seed"),
    ],
)
def test_a_mixture_that_is_not_described_is_refused(
    ask: Callable[..., Any], mixed: Path, arguments: list[str], problem: str
) -> None:
    assert mixed.exists()
    error, code = ask(*arguments)
    assert code == 2
    assert problem in error


@pytest.mark.parametrize("name", ["data.manifest", "data.manifest.gz"])
def test_a_saved_manifest_is_a_source_of_every_command(
    ask: Callable[..., Any], job: Path, mixed: Path, name: str
) -> None:
    Manifest.scan(job / "data").save(job / name)
    assert ask("inspect", name)[0]["files"] == ask("inspect", "data")[0]["files"]
    assert ask("plan", name)[0]["num_rows"] == NUM_ROWS
    assert ask("state", "step-3.json", "--source", name)[0]["fits"] is True
    assert ask("convert", name, "converted")[0]["rows"] == NUM_ROWS
    assert mixed == job
    sources = [each.replace('"data"', f'"{name}"') for each in SOURCES]
    assert ask("state", "mixture-2.json", *sources)[0]["fits"] is True


def test_a_file_that_may_be_gzip_is_no_manifest(ask: Callable[..., Any], job: Path) -> None:
    (job / "noise.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    error, code = ask("inspect", "noise.gz")
    assert (code, "as no known format does" in error) == (2, True)


def test_a_filter_that_is_not_json_is_answered_with_an_example(ask: Callable[..., Any]) -> None:
    error, code = ask("head", "data", "--filter", "x > 3")
    assert code == 2
    assert error.startswith("""laneway head: --filter must be JSON, such as '[["price", ">", 10]]' (""")


def test_no_command_shows_the_options_of_the_storage(ask: Callable[..., Any]) -> None:
    secret = json.dumps({"key": "AKIAEXAMPLE", "secret": "do-not-show-this"})
    error, code = ask("inspect", "s3://no-such-bucket-of-laneway", "--storage-options", '["do-not-show-this"]')
    assert (code, error) == (2, "laneway inspect: --storage-options must be a JSON object\n")
    error, code = ask("head", "nowhere/x.parquet", "--storage-options", secret)
    assert code == 2
    assert "do-not-show-this" not in error


def test_the_width_of_a_table_is_kept(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(
        pa.table({name: ["long text\n" * 20] for name in ("first", "second", "third")}), job / "wide.parquet"
    )
    monkeypatch.chdir(job)
    assert main(["head", "wide.parquet"]) == 0
    assert [len(line) <= 80 for line in capsys.readouterr().out.splitlines()] == [True, True]
