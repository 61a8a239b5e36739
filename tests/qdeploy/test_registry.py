import pytest

from qdeploy import registry
from qdeploy.errors import UnknownNameError


def test_own_methods_are_registered_like_anyone_elses() -> None:
    assert {"gptq", "rtn"} <= set(registry.names("methods"))


def test_unknown_name_is_one_error_with_a_hint() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown engine 'vlm'\. Did you mean 'vllm'"):
        registry.load("engines", "vlm")
