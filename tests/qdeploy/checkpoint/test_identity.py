from qdeploy.checkpoint.identity import Identity


def test_another_version_of_a_foreign_method_is_another_run() -> None:
    earlier, now = (
        Identity("0.1.0", {"descent": f"my-methods {version}"}, {"model": "m"}, "abc", None)
        for version in ("0.1", "0.2")
    )
    assert now.changes(earlier.to_dict()) == "methods.descent: my-methods 0.1 → my-methods 0.2"


def test_runs_that_knew_of_no_foreign_methods_go_on() -> None:
    now = Identity("0.1.0", {}, {"model": "m"}, "abc", None)
    earlier = now.to_dict()
    del earlier["methods"]
    assert now.changes(earlier) == ""
