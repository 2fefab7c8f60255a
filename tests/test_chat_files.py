"""Names of files as they are typed in a chat."""

from pathlib import Path

import pytest

from forge.console import files
from forge.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "why"), [("a\0b", "no control characters"), ("a" * 300, "name too long"), ("~nobody-at-all/a", "no such user")]
)
def test_what_can_be_no_files_name_is_said_in_a_line(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i)file=.*{why}"):
        files.place(name)


def test_a_file_need_not_be_there(tmp_path: Path) -> None:
    for name in ("new.json", "no/such/folder.json"):
        assert files.place(str(tmp_path / name)) == tmp_path / name
