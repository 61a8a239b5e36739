from pathlib import Path

import pytest

from qdeploy.files import read_json, write_json, write_text


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "ß": "漢字"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
