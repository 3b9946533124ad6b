"""The pages and pictures that commands write: what is drawn is what the plans say, and nothing is loaded or run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laneway import Mixture, SavableLoader, StatefulShardedDataset
from laneway.cli.data import facts_of_data
from laneway.cli.main import main
from laneway.cli.sources import Data
from laneway.core.files import FileTable
from laneway.pictures.page import Page
from laneway.pictures.plot import PlanPictures
from laneway.pictures.svg import Drawing, escaped, levels
from tests.corpora import write_corpus
from tests.planned import manifest_of

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
NUM_ROWS = 48
BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
SETTINGS: dict[str, Any] = {"shuffle": True, "seed": 4, "shard_rows": 4, "window_bytes": 200}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, and with the checkpoints of a run on 2 ranks, then on 1, and then on 4."""
    write_corpus(tmp_path / "data")
    state = None
    for number, (world_size, batch_size, steps) in enumerate(((2, 3, 3), (1, 2, 4), (4, 2, 1)), 1):
        loaders = [
            SavableLoader(
                StatefulShardedDataset(
                    tmp_path / "data", batch_size=batch_size, **SETTINGS, rank=rank, world_size=world_size
                )
            )
            for rank in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        passes = [iter(loader) for loader in loaders]
        for _ in range(steps):
            for each in passes:
                next(each)
        state = loaders[0].state_dict()
        (tmp_path / f"step-{number}.json").write_text(json.dumps(state))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_of(path: Path) -> ET.Element:
    """Return the elements of a page, which is well-formed."""
    return ET.fromstring(path.read_text(encoding="utf-8"))


def said(root: ET.Element, kind: str) -> list[str]:
    """Return what the boxes of a kind say."""
    return [each.text or "" for box in root.iter(f"{SVG}rect") if box.get("class") == kind for each in box]


def rows_of_windows(root: ET.Element, *kinds: str) -> int:
    """Return the rows of the windows of a kind that are drawn."""
    found = [re.fullmatch(r"lane \d+, window \d+: ([\d,]+) rows?", text) for kind in kinds for text in said(root, kind)]
    return sum(int(each[1].replace(",", "")) for each in found if each)


def texts(root: ET.Element) -> str:
    return "\n".join(root.itertext())


def test_a_page_shows_the_epoch_through_all_of_its_cuts(run: Path) -> None:
    assert main(["report", "data", "step-1.json", "step-2.json", "step-3.json", "-o", "report.html"]) == 0
    root = page_of(run / "report.html")
    done = 2 * 3 * 3 + 2 * 4 + 4 * 2
    assert rows_of_windows(root, "done", "done2") == done
    # The ranks deliver equally many rows: 2 are repeated.
    assert rows_of_windows(root, "ahead", "ahead2") == NUM_ROWS - done + 2
    assert said(root, "done")[-1] == f"{done} rows exactly once"
    assert said(root, "left") == [f"{NUM_ROWS - done} rows yet to come"]
    shown = texts(root)
    for text in ("2 ranks", "1 rank", "4 ranks", "step 8, next", "as of step-3.json", "exactly once", "step-1.json"):
        assert text in shown
    assert len([*root.iter(f"{SVG}svg")]) == 8


def test_bars_of_a_lane_are_as_long_as_its_rows(run: Path) -> None:
    main(["report", "data", "-o", "report.html", "--batch-size", "3", "--world-size", "2", "--workers", "2"])
    boxes = [box for box in page_of(run / "report.html").iter(f"{SVG}rect") if (box.get("class") or "")[:5] == "ahead"]
    widths = [float(box.get("width") or 0) for box in boxes]
    rows = [int(re.findall(r"(\d+) rows?$", box[0].text or "")[0]) for box in boxes]
    assert sum(rows) == NUM_ROWS
    scale = sum(widths) / sum(rows)
    assert widths == pytest.approx([each * scale for each in rows], rel=0.01)


def test_a_page_loads_and_runs_nothing_whatever_files_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    folder = tmp_path / 'a"b<i>&amp;\u202e'
    folder.mkdir()
    pq.write_table(pa.table({evil: [1], "b\x07\n": [2], "&lt;": [3]}), folder / "<b>'\".parquet")
    monkeypatch.chdir(tmp_path)
    assert main(["report", folder.name, "-o", "report.html"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    root = page_of(tmp_path / "report.html")
    used = {each.tag.removeprefix(SVG) for each in root.iter()}
    known = "html head meta title style body h1 h2 p dl div dt dd svg text rect path table tr th td ul li"
    assert used <= {*known.split()}
    attributes = {name for each in root.iter() for name in each.attrib}
    assert not attributes & {"src", "href", "onerror", "onload", "{http://www.w3.org/1999/xlink}href"}
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert evil in texts(root)
    assert "\u202e" not in text
    assert "\x07" not in text


def test_a_mixture_is_drawn_before_it_runs_with_its_schedule(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "drawn_mixture", raising=False)
    (run / "drawn_mixture.py").write_text(
        "from laneway import Mixture, StatefulShardedDataset\n"
        'data = StatefulShardedDataset("data")\n'
        'weights = [(0, {"web": 1, "code": 1}), (4_000, {"web": 1, "code": 3})]\n'
        'mixture = Mixture({"web": data, "code": data.shuffle(1)}, weights).batch(4)\n'
    )
    assert main(["plan", "drawn_mixture.py:mixture", "--world-size", "2", "--plot", "plan.svg"]) == 0
    image = ET.fromstring((run / "plan.svg").read_text(encoding="utf-8"))
    shares = {text.split(" from")[0] for kind in ("s0", "s1") for text in said(image, kind)}
    assert shares == {"web: 50.0%", "code: 50.0%", "web: 25.0%", "code: 75.0%"}
    assert any(text.endswith("step 500 on") for text in said(image, "s0"))
    assert "web 0.5, code 0.5; 1 change of weights" in capsys.readouterr().out
    assert main(["report", "drawn_mixture.py:mixture", "--world-size", "2", "-o", "mixture.html", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["checkpoint"], facts["is_exact"], [*facts["sources"]]) == (None, None, ["web", "code"])
    text = " ".join(page_of(run / "mixture.html").itertext())
    assert "planned from its first row" in text
    assert "50.00%, 75.00% from row 4,000 on" in text
    assert "Audit" not in text


def test_the_page_about_a_mixture_has_its_sources_and_their_audit(run: Path) -> None:
    data = StatefulShardedDataset(run / "data", seed=3)
    mixture = Mixture({"web": data, "<b>": data.shuffle(4)}, {"web": 1, "<b>": 3}).batch(4)
    batches = iter(mixture)
    for number in range(2):
        for _ in range(5):
            next(batches)
        (run / f"mixture-{number}.json").write_text(json.dumps(mixture.state_dict()))
    sources = ['web={"path": "data", "seed": 3}', "--source", '<b>={"path": "data", "shuffle": true, "seed": 4}']
    states = ["mixture-0.json", "mixture-1.json"]
    assert main(["report", sources[0], *states, *sources[1:], "-o", "mixture.html"]) == 0
    document = page_of(run / "mixture.html")
    text = " ".join(document.itertext())
    assert "Mixture of web, <b>" in text
    assert "The checkpoints prove that each row was delivered exactly once." in text
    assert said(document, "s0")
    assert all("<b>: 75.0% from step" in each for each in said(document, "s0"))
    assert "<b> 75.0%" in text
    assert "web 25.0%" in text
    assert "source 'web', epoch 0: 10 of" in text
    assert main(["report", sources[0], *states, *sources[1:], "--seed", "3", "-o", "other.html"]) == 2


def test_an_audit_that_fails_is_shown_in_red(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "data", "step-3.json", "-o", "report.html"]) == 0
    assert "the audit has 1 finding" in capsys.readouterr().out
    root = page_of(run / "report.html")
    assert said(root, "bad") == ["26 rows not proved"]
    assert "do not prove" in texts(root)
    # What is found, and where.
    assert "they came before the first checkpoint that is given; part-" in texts(root)


def test_an_epoch_that_is_finished_has_nothing_to_read(run: Path) -> None:
    loader = SavableLoader(StatefulShardedDataset(run / "data", batch_size=3, **SETTINGS))
    for _ in loader:
        pass
    (run / "done.json").write_text(json.dumps(loader.state_dict()))
    assert main(["report", "data", "done.json", "-o", "report.html"]) == 0
    root = page_of(run / "report.html")
    assert rows_of_windows(root, "done", "done2") == NUM_ROWS
    assert "Nothing is left of this epoch." in texts(root)


def test_selected_rows_are_drawn_without_reading_them(run: Path) -> None:
    condition = ["--filter", '[["id", "<", 20]]']
    assert main(["report", "data", "-o", "report.html", "--batch-size", "4", *condition]) == 0
    assert rows_of_windows(page_of(run / "report.html"), "ahead", "ahead2") == 20


def test_data_without_rows_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a.parquet", "-o", "report.html"]) == 0
    assert main(["plan", "a.parquet", "--plot", "plan.svg"]) == 0
    assert "there are no rows" in texts(page_of(tmp_path / "report.html"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["step-3.json", "-o", "r.html", "--shuffle", "--seed", "0"],
            "settings of the dataset: leave out --shuffle, --seed",
        ),
        (["step-3.json", "-o", "step-3.json"], "--output must end with .html, not 'step-3.json'"),
        (["-o", "missing/r.html"], "missing/r.html"),
        (["missing.json", "-o", "r.html"], "missing.json does not exist"),
    ],
)
def test_what_can_not_be_written_is_an_error(
    run: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "step-3.json").read_bytes()
    assert main(["report", "data", *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert not (run / "r.html").exists()
    assert (run / "step-3.json").read_bytes() == before


def test_a_plot_of_a_plan_has_all_rows_of_few_batches(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "data", "--batch-size", "3", "--shuffle", "--world-size", "2", "--plot", "plan.svg", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    root = ET.fromstring((run / "plan.svg").read_text(encoding="utf-8"))
    (dots,) = [each.get("d") or "" for each in root.iter(f"{SVG}path") if each.get("class") == "dots"]
    assert dots.count("M") == NUM_ROWS
    titles = [each.text for each in root.iter(f"{SVG}text") if each.get("class") == "title"]
    assert titles == ["Lanes and progress", "Rows against time", "Mixing", "Bytes per rank", "Start-up requests"]
    assert (facts["plot"], len(said(root, "bar"))) == ("plan.svg", 4)
    assert main(["plan", "data", "--plot", "plan.png"]) == 2


def test_a_page_about_many_files_lanes_and_ranks_is_small() -> None:
    files = StatefulShardedDataset(manifest_of(_many_files(20_000)), shuffle=True, batch_size=64, lanes=8_192)
    pictures = PlanPictures(files.plan(0, 1_024, 4))
    page = Page(pictures, files.manifest, facts_of_data(Data.of(files.definition))).html()
    assert len(page.encode()) < 300_000
    assert len([*ET.fromstring(page).iter(f"{SVG}rect")]) < 3_000


def _many_files(number: int) -> FileTable:
    blocks = [([100, 50], [1 << 20, 1 << 19])] * number
    return FileTable.build([f"{i:06}.parquet" for i in range(number)], [1 << 20] * number, [""] * number, blocks, "")


def test_text_is_one_line_of_printable_characters() -> None:
    assert (
        escaped("a\x00b\udc80c\n") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"
    )
    assert escaped("<'&\">") == "&lt;&#x27;&amp;&quot;&gt;"
    assert escaped("x" * 20, 10) == "xxxxxxx..."
    drawing = Drawing(10, 10, '"')
    drawing.text(0, 0, "<g>")
    assert len(ET.fromstring(drawing.image())) == 1


@pytest.mark.parametrize(
    ("most", "is_binary", "expected"),
    [
        (0, False, [0]),
        (7, False, [0, 2, 4, 6]),
        (1050, False, [0, 500, 1000]),
        (0.4, False, [0, 0.1, 0.2, 0.3, 0.4]),
        (5000, True, [0, 2048, 4096]),
    ],
)
def test_levels_are_few_and_round(most: float, expected: list[float], *, is_binary: bool) -> None:
    assert levels(most, is_binary=is_binary) == pytest.approx(expected)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_draws_the_page(run: Path) -> None:
    assert BROWSER is not None
    main(["report", "data", "step-1.json", "step-2.json", "step-3.json", "-o", "report.html"])
    options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--headless", "--window-size=1040,2600"]
    target, page = f"--screenshot={run / 'page.png'}", f"file://{run / 'report.html'}"
    subprocess.run(
        [BROWSER, *options, f"--user-data-dir={run / 'profile'}", target, page],
        check=True,
        timeout=120,
        capture_output=True,
    )
    with Image.open(run / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert image.size == (1040, 2600)
    done, ahead, paper = (
        int((pixels == color).all(axis=1).sum()) for color in ((63, 111, 208), (192, 208, 240), (253, 252, 249))
    )
    assert (done > 10_000, ahead > 1_000, paper > 1_000_000) == (True, True, True)


def test_bash_completes_commands_options_and_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "laneway.bash"
    script.write_text(capsys.readouterr().out)
    for words, expected in [
        ("re", "report redistribute"),
        ("plan data --world", "--world-size"),
        ("plan --remainder d", "drop"),
        ("plan --format j", "jsonl"),
        ("completion ''", "bash zsh"),
        ("plan data/pa", ""),
    ]:
        ask = f"source {script}; COMP_WORDS=(laneway {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _laneway; "
        found = subprocess.run(
            ["bash", "-c", f'{ask} echo "${{COMPREPLY[@]}}"'], check=True, capture_output=True, text=True, timeout=60
        )
        assert (found.stdout.strip(), found.stderr) == (expected, "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_the_script_for_zsh_parses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "zsh"]) == 0
    (tmp_path / "_laneway").write_text(capsys.readouterr().out)
    subprocess.run(["zsh", "-f", "-n", str(tmp_path / "_laneway")], check=True, timeout=60)
