import errno
from pathlib import Path

import pytest

from qdeploy.errors import OutputError, QDeployError, UnknownNameError, disk_errors


def test_unknown_name_offers_the_nearest_and_lists_all() -> None:
    error = UnknownNameError("method", "gtpq", ["rtn", "gptq"])
    assert str(error) == "Unknown method 'gtpq'. Did you mean 'gptq'? Available: gptq, rtn."
    assert error.exit_code == 2


def test_unknown_name_without_a_near_one_makes_no_guess() -> None:
    assert "Did you mean" not in str(UnknownNameError("method", "zzzzzz", ["rtn"]))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "Choose another folder"),
        (errno.EACCES, "Allow writing"),
        (errno.ENOTDIR, "Choose another folder"),
    ],
)
def test_disk_trouble_becomes_one_message_with_its_remedy(code: int, remedy: str) -> None:
    with pytest.raises(OutputError, match=f"Cannot write /out: .*{remedy}"), disk_errors(Path("/out")):
        raise OSError(code, "trouble")


def test_other_os_errors_pass_through() -> None:
    with pytest.raises(FileNotFoundError), disk_errors(Path("/out")):
        raise FileNotFoundError("gone")


def test_every_error_of_the_tree_is_documented() -> None:
    import qdeploy.errors as module

    def family(cls: type[QDeployError]) -> list[type[QDeployError]]:
        return [cls, *(grandchild for child in cls.__subclasses__() for grandchild in family(child))]

    for cls in (cls for cls in family(QDeployError) if cls.__module__ == module.__name__):
        assert cls.__name__ in (module.__doc__ or ""), cls.__name__
