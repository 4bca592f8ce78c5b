import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A tiny model in a folder of Hugging Face's."""
    import tiny

    folder = tmp_path_factory.mktemp("base") / "qwen2-tiny"
    tiny.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    import tiny

    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    tiny.write_rows(path, 20)
    return path


@pytest.fixture(scope="session")
def quern() -> str:
    """The program: QUERN names it, else it is looked for where it is built and on the path."""
    built = HERE.parents[3] / "target" / "release" / "quern"
    found = os.environ.get("QUERN") or (str(built) if built.exists() else shutil.which("quern"))
    if not found:
        pytest.skip("SKIPPED: no quern; build it, or name it with QUERN")
    return found
