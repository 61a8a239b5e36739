"""A folder that is made under another name, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdeploy import catalogue
from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A path beside `output`, to be made a folder, that takes its name at the end; on an error it is gone.

    The finished folder is entered in the catalogue.

    Raises:
        OutputError: the disk is full or read-only.
    """
    folder = output.with_name(output.name + ".staged")
    with disk_errors(output):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
            fsync_folder(folder)
            folder.rename(output)
            catalogue.record(output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
