"""The command line on S3: data, states, checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from laneway import Checkpoints
from laneway.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.storage.beds import Bed


def test_commands_read_data_and_checkpoints_of_a_bucket(
    tmp_path: Path, s3: Bed, capsys: pytest.CaptureFixture[str]
) -> None:
    url = s3.corpus(tmp_path / "data")
    loader = s3.savable(url)
    batches = iter(loader)
    taken = [next(batches)["id"].tolist() for _ in range(3)]
    s3.put(f"{url}-state.json", json.dumps(loader.state_dict()).encode())
    with Checkpoints(f"{url}-run", storage_options=s3.options) as checkpoints:
        checkpoints.save(3, loader=loader)

    def ask(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--storage-options", json.dumps(s3.options), "--json"]) == code
        out, err = capsys.readouterr()
        assert not any(isinstance(value, str) and len(value) > 3 and value in out + err for value in secrets)
        return json.loads(out) if code < 2 else err

    secrets = [s3.options.get(name) for name in ("key", "secret", "token")]
    assert ask("inspect", url)["rows"] == 48
    assert ask("head", url, "-n", "1")["rows"][0]["id"] == 0
    assert ask("verify", url)["damaged"] == []
    for state in (f"{url}-state.json", f"{url}-run"):
        assert ask("state", state, "--source", url)["fits"] is True
        assert ask("audit", state, "--source", url)["is_exact"] is True
        rows = ask("rows", state, "--source", url, "--step", "1", "--show")["rows"]
        assert [each["values"]["id"] for each in rows] == taken[1]
    assert "does not exist" in ask("state", f"{url}-missing.json", code=2)
