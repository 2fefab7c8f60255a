"""Names of files as they are typed in a chat."""

from pathlib import Path

import pytest

from forge.console import files
from forge.errors import ServingError


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_what_can_be_no_files_name_is_said_in_a_line(name: str) -> None:
    with pytest.raises(ServingError, match="can't be looked at"):
        files.place(name)


def test_a_file_need_not_be_there(tmp_path: Path) -> None:
    for name in ("new.json", "no/such/folder.json"):
        assert files.place(str(tmp_path / name)) == tmp_path / name
