"""Plans: what is valid, and what is said about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.bench.plan import load_plan
from qdeploy.errors import RecipeError

LOAD = "load: {rate: 1, requests: 10}"
GOOD = f"model: m\nvariants: [{{name: a}}]\n{LOAD}"

LIMITED = GOOD.replace(LOAD, "load: {rate: 1, slo: p90_ttft=1s}")


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- 1", "must be a mapping with the keys model"),
        (f"model: m\nvariants: []\n{LOAD}", "variants: give at least one"),
        ("model: m\nvariants: [{name: a}]", "nothing is to be measured: give load or eval"),
        (f"variants: [{{name: a}}]\n{LOAD}", "model: Field required"),
        (f"model: m\nvarants: []\n{LOAD}", r"varants: no such field. Did you mean 'variants'\?"),
        (f"model: m\nvariants: [{{name: a, metod: rtn}}]\n{LOAD}", r"variants.0.metod.*'method'\?"),
        (f"{GOOD}\neval: {{windws: 3}}", r"eval.windws: no such field. Did you mean 'windows'\?"),
        (f"{GOOD}\nengine: {{device: gpu}}", "engine.device: .*'cpu'"),
        (f"{GOOD}\nengine: {{name: vlm}}", r"Unknown engine 'vlm'. Did you mean 'vllm'\?"),
        (f"model: m\nvariants: [{{name: a, method: gtpq}}]\n{LOAD}", "variant a: Unknown method 'gtpq'"),
        (f"model: m\nvariants: [{{name: a, scheme: W4A17}}]\n{LOAD}", "variant a: Unknown scheme 'W4A17'"),
        (f"model: m\nvariants: [{{name: a}}, {{name: a}}]\n{LOAD}", "two variants are named 'a'"),
        (f"model: m\nvariants: [{{name: baseline}}]\n{LOAD}", "name of the 16-bit model"),
        (f"model: m\nvariants: [{{name: ../a}}]\n{LOAD}", "variants.0.name"),
        ("model: m\nvariants: [{name: a}]\nload: {rate: 1, concurrency: 2}", "load: give either `rate`"),
        (f"{GOOD}\nobjective: {{fail_if: ['ppl<']}}", r"objective.fail_if: 'ppl<' is not of the form FIGURE"),
        (f"{GOOD}\nobjective: {{rates: [0]}}", "objective.rates: give requests per second above 0"),
        (f"{GOOD}\nobjective: {{optimize: rate}}", "optimize rate: give load.rate and load.slo"),
        (f"{GOOD}\nobjective: {{optimize: speed}}", "objective.optimize: .*'rate', 'cost' or 'size'"),
        (f"{LIMITED}\nobjective: {{optimize: cost}}", "optimize cost: give load.price_per_hour"),
        (
            "model: m\nvariants: [{name: a}]\nload: {concurrency: 2}\nobjective: {rates: [1]}",
            "objective.rates are tried besides the rate of an open loop: give load.rate",
        ),
    ],
)
def test_a_bad_plan_is_refused_by_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_plan(write(tmp_path, text))
    assert "plan.yaml" in str(caught.value)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Cannot read the plan"):
        load_plan(tmp_path / "none.yaml")


def test_paths_are_relative_to_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "text.txt").write_text("words")
    path = write(
        tmp_path, f"{GOOD}\ncalibration: {{source: [text.txt@2, builtin]}}\neval: {{text: text.txt}}"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    plan = load_plan(path)
    assert plan.eval is not None
    assert plan.model == str(tmp_path / "m")
    assert plan.eval.text == str(tmp_path / "text.txt")
    assert [str(source) for source in plan.calibration.source] == [f"{plan.eval.text}@2", "builtin"]


def test_the_files_of_a_load_are_relative_to_the_plan_too(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("")
    (tmp_path / "chats.json").write_text("")
    for load, field in (("{trace: day.csv}", "trace"), ("{rate: 1, dataset: chats.json}", "dataset")):
        path = write(tmp_path, GOOD.replace(LOAD, f"load: {load}"))
        found = load_plan(path).load
        assert found is not None
        assert getattr(found, field) == str(tmp_path / getattr(found, field).rpartition("/")[2])


def test_every_variant_is_sent_the_same_prompts(tmp_path: Path) -> None:
    first, second = (load_plan(write(tmp_path, GOOD)).load for _ in range(2))
    assert first == second


def test_a_plan_optimizes_the_rate_under_an_slo_and_the_size_without(tmp_path: Path) -> None:
    assert load_plan(write(tmp_path, GOOD)).optimum == "size"
    plan = load_plan(write(tmp_path, f"{LIMITED}\nobjective: {{rates: [2, 1, 0.5, 2]}}"))
    assert plan.optimum == "rate"
    assert plan.rates == (0.5, 2.0), "the plan's own is tried anyway"


def test_the_plans_of_the_repository_are_valid() -> None:
    root = Path(__file__).parents[2]
    assert load_plan(root / "demo.yaml").optimum == "size"
    plan = load_plan(root / "deploy.yaml")
    assert plan.optimum == "rate"
    assert [variant.scheme for variant in plan.variants] == ["W8A8", "W4A16", "W4A16_ASYM"]
