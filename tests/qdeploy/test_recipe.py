from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdeploy.assignment import resolve_schemes
from qdeploy.errors import QDeployError, RecipeError, UnknownNameError, UsageError
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.rotation import Rotation
from qdeploy.methods.rtn import RTN
from qdeploy.methods.smoothquant import SmoothQuant
from qdeploy.recipe import CalibrationConfig, Recipe, Source
from qdeploy.schemes import PRESETS

BLOCK = {
    f"model.layers.{i}.{name}": shape
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (576, 576),
        "self_attn.k_proj": (192, 576),
        "self_attn.v_proj": (192, 576),
        "self_attn.o_proj": (576, 576),
        "mlp.gate_proj": (1536, 576),
        "mlp.up_proj": (1536, 576),
        "mlp.down_proj": (576, 1536),
    }.items()
}


def written(folder: Path, *rules: dict[str, Any], **fields: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "rules": list(rules), **fields}))
    return path


def rule(match: str = "Linear", scheme: Any = "W4A16", stages: Any = ("rtn",)) -> dict[str, Any]:
    return {"match": match, "scheme": scheme, "stages": list(stages)}


def test_flags_and_yaml_give_the_same_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("""
        model: m
        rules:
          - match: Linear
            scheme: {bits: 4, group: 64, symmetric: false}
            stages: [gptq]
        calibration: {source: text.jsonl, samples: 32, sequence_length: 256, seed: 7}
    """)
    calibration = {"source": "text.jsonl", "samples": 32, "sequence_length": 256, "seed": 7}
    flags = Recipe.from_flags("m", scheme="w4a16", group_size="64", symmetric=False, calibration=calibration)
    assert Recipe.from_yaml(path) == flags
    assert Recipe.from_yaml(path).sha256() == flags.sha256()
    assert Recipe.from_flags("m", scheme="W4A16_ASYM", group_size="64", calibration=calibration) == flags


INTEGERS = [name for name, scheme in PRESETS.items() if scheme.element is None]
FLOATS = [name for name in PRESETS if name not in INTEGERS]


@pytest.mark.parametrize(
    ("scheme", "group_size"),
    [*product(PRESETS, [None, "auto"]), *product(INTEGERS, ["channel"])],
)
def test_canonical_yaml_reads_back_equal(tmp_path: Path, scheme: str, group_size: str | None) -> None:
    recipe = Recipe.from_flags("m", scheme=scheme, group_size=group_size, method="rtn")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(path) == recipe
    assert recipe.rules[0].scheme is not None
    assert recipe.rules[0].scheme.name == scheme


@pytest.mark.parametrize("scheme", FLOATS)
def test_minifloats_are_written_by_name_and_leave_nothing_to_choose(scheme: str) -> None:
    recipe = Recipe.from_flags("m", scheme=scheme.lower(), method="rtn")
    assert recipe.model_dump()["rules"][0]["scheme"] == scheme
    with pytest.raises(UsageError, match=f"{scheme} leaves nothing for --group-size to choose"):
        Recipe.from_flags("m", scheme=scheme, group_size="64")
    with pytest.raises(UsageError, match="--symmetric and --asymmetric"):
        Recipe.from_flags("m", scheme=scheme, symmetric=True)


def test_groups_of_minifloats_must_divide_every_layer() -> None:
    recipe = Recipe.from_flags("m", scheme="FP8_BLOCK", method="rtn")
    message = r"FP8_BLOCK has groups of 128 columns, which do not divide model.layers.0\..*q_proj \(576"
    with pytest.raises(UsageError, match=message):
        resolve_schemes(recipe, BLOCK)
    resolved = resolve_schemes(Recipe.from_flags("m", scheme="NVFP4", method="rtn"), BLOCK)
    assert {planned.scheme for planned in resolved.values()} == {PRESETS["NVFP4"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 8, "activation_bits": 8}, "Use group: channel"),
        ({"bits": 4, "activation_bits": 8, "symmetric": False}, "Use symmetric: true"),
        ({"bits": 4, "activation_bits": 8, "static_activations": True}, "Use static_activations: false"),
        ({"bits": 4, "static_activations": True}, "Add activation_bits: 8"),
    ],
)
def test_activations_that_no_engine_takes_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.from_yaml(written(tmp_path, rule(scheme=fields)))


def test_a_mixture_is_written_alike_in_flags_and_files(tmp_path: Path) -> None:
    sources = ["builtin", "c4@2", "chats.jsonl@0.1"]
    path = written(tmp_path, rule(), calibration={"source": sources})
    recipe = Recipe.from_flags("m", method="rtn", calibration={"source": sources})
    assert Recipe.from_yaml(path) == recipe
    assert yaml.safe_load(recipe.to_yaml())["calibration"]["source"] == sources
    assert [source.weight for source in recipe.calibration.source] == [1, 2, 0.1]
    spelled = [{"name": "builtin"}, {"name": "c4", "weight": 2}, "chats.jsonl@0.1"]
    assert Recipe.from_flags("m", method="rtn", calibration={"source": spelled}) == recipe


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("c4", "c4", 1),
        ("c4@2", "c4", 2),
        ("a@2/b.txt", "a@2/b.txt", 1),
        ("a@2.txt", "a@2.txt", 1),
        ("a@b.jsonl@1e-3", "a@b.jsonl", 0.001),
        ("@2", "@2", 1),
        ("c4@1.0000001", "c4", 1.0000001),
    ],
)
def test_a_weight_is_never_mistaken_for_a_part_of_a_path(text: str, name: str, weight: float) -> None:
    source = Source.model_validate(text)
    assert (source.name, source.weight) == (name, weight)
    assert Source.model_validate(str(source)) == source


def test_one_source_is_written_as_it_always_was() -> None:
    """Recipes that name one text keep their hash."""
    dumped = CalibrationConfig().model_dump(mode="json")
    assert dumped == {"source": "builtin", "samples": 128, "sequence_length": 512, "seed": 0}


def test_the_hash_changes_with_every_knob() -> None:
    hashes = {
        Recipe.from_flags("m").sha256(),
        Recipe.from_flags("other").sha256(),
        Recipe.from_flags("m", method="rtn").sha256(),
        Recipe.from_flags("m", group_size="32").sha256(),
        Recipe.from_flags("m", calibration={"seed": 1}).sha256(),
    }
    assert len(hashes) == 5


def test_the_first_matching_rule_wins(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(
        written(
            tmp_path,
            rule(r"re:.*mlp\.down_proj", "W8A8", [{"gptq": {"damp": 0.02}}]),
            rule("model.layers.1.self_attn.o_proj", "none", []),
            rule(scheme={"bits": 4, "group": 64}),
        )
    )
    found = resolve_schemes(recipe, BLOCK)
    assert "model.layers.1.self_attn.o_proj" not in found
    assert found["model.layers.0.self_attn.o_proj"].scheme.describe() == "W4A16 symmetric, group 64"
    assert found["model.layers.0.self_attn.o_proj"].rounder == RTN()
    assert found["model.layers.0.mlp.down_proj"].scheme.describe() == "W8A8 symmetric, per channel"
    assert found["model.layers.0.mlp.down_proj"].rounder == GPTQ(damp=0.02)
    assert list(found) == [name for name in BLOCK if name in found]


def test_a_pattern_must_match_the_whole_name() -> None:
    recipe = Recipe.model_validate({"model": "m", "rules": [rule(r"re:model\.layers\.1")]})
    assert recipe.rule_for("model.layers.1", "Linear") is not None
    assert recipe.rule_for("model.layers.10", "Linear") is None


def test_the_output_head_is_quantized_only_by_name() -> None:
    assert Recipe.from_flags("m").rule_for("lm_head", "Linear") is None
    assert Recipe.from_flags("m").rule_for("model.layers.0.mlp.up_proj", "Linear") is not None
    named = Recipe.model_validate({"model": "m", "rules": [rule("lm_head")]})
    assert named.rule_for("lm_head", "Linear") is named.rules[0]


def test_auto_group_size_fits_all_layers_of_the_rule() -> None:
    found = resolve_schemes(Recipe.from_flags("m", group_size="auto"), BLOCK)
    assert {planned.scheme.group_size for planned in found.values()} == {64}


def test_a_misfitting_group_size_is_refused_with_the_sizes_that_fit() -> None:
    with pytest.raises(UsageError, match=r"Group size 128 does not divide 12 of 14 layers.*64, 32, channel"):
        resolve_schemes(Recipe.from_flags("m"), BLOCK)


def test_fused_siblings_must_share_a_scheme(tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(
        written(tmp_path, rule(r"re:.*\.up_proj", "none", []), rule(scheme={"bits": 4, "group": 64}))
    )
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp: .*gate_proj: W4A16.*up_proj: 16 bit.*one rule"):
        resolve_schemes(recipe, BLOCK)


def test_siblings_must_share_their_transforms(tmp_path: Path) -> None:
    w8a8 = [rule(r"re:.*k_proj", "W8A8", ["rtn"]), rule("Linear", "W8A8", ["smoothquant", "rtn"])]
    told = r"layers\.0\.self_attn\.q_proj: smoothquant\+rtn, .*k_proj: rtn, .*v_proj: smoothquant\+rtn\. Give"
    with pytest.raises(RecipeError, match=told):
        resolve_schemes(Recipe.from_yaml(written(tmp_path, *w8a8)), BLOCK)


def test_the_experts_of_a_block_must_share_a_scheme() -> None:
    linears = {f"model.layers.0.mlp.experts.{i}.up_proj": (32, 64) for i in range(3)}
    linears["model.layers.0.self_attn.o_proj"] = (64, 64)
    first = {"match": "model.layers.0.mlp.experts.1.up_proj", "scheme": "none"}
    rest = {"match": "Linear", "scheme": {"bits": 4, "group": 32}}
    mixed = Recipe.model_validate({"model": "m", "rules": [first, rest]})
    with pytest.raises(RecipeError, match=r"experts: engines run all experts .*experts\.1\.up_proj: 16 bit"):
        resolve_schemes(mixed, linears)
    first["match"] = r"re:.*experts.*"
    without = Recipe.model_validate({"model": "m", "rules": [first, rest]})
    assert list(resolve_schemes(without, linears)) == ["model.layers.0.self_attn.o_proj"]


def test_rules_that_never_apply_are_errors(tmp_path: Path) -> None:
    all_of_it = rule(scheme={"bits": 4, "group": 64})
    typo = Recipe.from_yaml(written(tmp_path, rule("model.layers.0.self_attn.o_porj"), all_of_it))
    with pytest.raises(
        RecipeError, match=r"matches no layer.*Did you mean 'model.layers.0.self_attn.o_proj'"
    ):
        resolve_schemes(typo, BLOCK)
    late = Recipe.from_yaml(written(tmp_path, all_of_it, rule(r"re:.*down_proj", "none", [])))
    with pytest.raises(RecipeError, match=r"never applies: earlier rules match all of its 2 layers"):
        resolve_schemes(late, BLOCK)
    nothing = Recipe.from_yaml(written(tmp_path, rule("Linear", "none", [])))
    with pytest.raises(RecipeError, match="quantizes no layer"):
        resolve_schemes(nothing, BLOCK)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"scheme": "W4A61"}, UnknownNameError, r"Unknown scheme 'W4A61'\. Did you mean"),
        (
            {"method": "gtpq"},
            UnknownNameError,
            r"Unknown method 'gtpq'\. Did you mean 'gptq' or 'spqr'\? Available: autoround, awq, gptq",
        ),
        ({"group_size": "big"}, UsageError, "Group size 'big' is neither"),
        ({"group_size": "0"}, UsageError, "Group size '0'"),
        ({"scheme": "W8A8", "group_size": "64"}, UsageError, "of group: 64. Use group: channel"),
        ({"scheme": "W8A8", "symmetric": False}, UsageError, "of symmetric: false. Use symmetric: true"),
        ({"calibration": {"source": []}}, RecipeError, r"calibration\.source: give at least one"),
        ({"calibration": {"source": ["c4@0"]}}, RecipeError, r"source\.0\.weight: .*greater than 0.*got 0"),
        ({"calibration": {"source": "c4@-1"}}, RecipeError, r"source\.0\.weight: .*greater than 0.*got -1"),
        ({"calibration": {"source": "c4@nan"}}, RecipeError, r"source\.0\.weight: .*finite.*got nan"),
        ({"calibration": {"samples": 0}}, RecipeError, r"calibration\.samples: .*greater than or equal to 1"),
    ],
)
def test_flags_that_cannot_work(flags: dict[str, Any], error: type[QDeployError], message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe.from_flags("m", **flags)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"gptq": {"dmap": 0.1}}], "gptq has no knob 'dmap'. Did you mean 'damp'"),
        ([{"gptq": {"damp": 7}}], r"gptq: damp: .*less than or equal to 1.*got 7"),
        ([{"gptq": 3}], "knobs are written"),
        ([{"gptq": {}, "rtn": {}}], "A stage is a method's name or one"),
        ([], "one rounder, such as gptq; its stages: none"),
        (["rtn", "gptq"], r"its stages: rtn \(rounder\), gptq \(rounder\)"),
        (["gptq", "smoothquant"], r"its stages: gptq \(rounder\), smoothquant \(transform\)"),
        (["smoothquant"], r"its stages: smoothquant \(transform\)"),
    ],
)
def test_stages_that_cannot_work(tmp_path: Path, stages: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(written(tmp_path, rule(stages=stages)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not valid YAML"),
        ("- a list", "must be a mapping with the keys model, rules"),
        ("model: m", "rules: Field required"),
        ("model: m\nrules: []", "rules: .*at least 1"),
        ("rules: [{match: Linear, scheme: W4A16}]", "model: Field required"),
        ("model: m\nrulse: []", r"rulse: no such field\. Did you mean 'rules'\?"),
        ("model: m\nrules: [{match: 're:(', scheme: W4A16}]", "not a regular expression"),
        ("model: m\nrules: [{match: Linear, scheme: {bits: 40}}]", r"rules\.0\.scheme\.bits: .*got 40"),
        ("model: m\nrules: [{match: Linear, scheme: none, stages: [rtn]}]", "can have no stages"),
    ],
)
def test_files_that_cannot_work_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(path)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Cannot read the recipe .*none\.yaml"):
        Recipe.from_yaml(tmp_path / "none.yaml")


def test_gptq_is_the_default_stage_and_the_model_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("rules: [{match: Linear, scheme: W4A16}]")
    assert Recipe.from_yaml(path, model="m") == Recipe.from_flags("m")


def test_papers_that_are_stacks_go_by_their_names(tmp_path: Path) -> None:
    recipe = Recipe.from_flags("m", scheme="W2A16", method="quip")
    assert [stage.method for stage in recipe.rules[0].stages] == ["incoherence", "ldlq"]
    assert Recipe.from_yaml(written(tmp_path, rule(scheme="W2A16", stages=["quip"]))).rules == recipe.rules
    smoothed = Recipe.from_flags("m", method="smoothquant+quip").rules[0]
    assert [stage.method for stage in smoothed.stages] == ["smoothquant", "incoherence", "ldlq"]


def test_channels_are_scaled_before_the_basis_changes() -> None:
    with pytest.raises(RecipeError, match="Put what changes it last of the transforms"):
        Recipe.from_flags("m", method="incoherence+awq+gptq")


def test_a_rotation_comes_first_and_is_the_same_for_all_rules(tmp_path: Path) -> None:
    down = rule("re:.*down_proj", "W8A16", ["rotation", "rtn"])
    rest = rule(stages=[{"rotation": {"seed": 0}}, "smoothquant", "gptq"])
    kept = {"match": "re:.*o_proj", "scheme": "none"}
    found = Recipe.from_yaml(written(tmp_path, kept, down, rest))
    assert found.rotation == Rotation()
    plan = resolve_schemes(found, {name: (n, 128) for name, (n, _) in BLOCK.items()})
    assert {planned.rotation for planned in plan.values()} == {Rotation()}
    assert plan["model.layers.0.mlp.down_proj"].method == "rotation+rtn"
    assert not plan["model.layers.0.mlp.down_proj"].needs_data
    assert plan["model.layers.0.mlp.up_proj"].transforms == (SmoothQuant(),)
    assert Recipe.from_yaml(written(tmp_path, rule())).rotation is None


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule(stages=["smoothquant", "rotation", "rtn"])], r"put it first, and once.*smoothquant, rotation"),
        ([rule(stages=["rotation", "rotation", "rtn"])], "put it first, and once"),
        ([rule(stages=["rotation"])], r"then one rounder.*rotation \(transform\)"),
        (
            [rule("re:.*down_proj"), rule(stages=["rotation", "rtn"])],
            r"'re:\.\*down_proj': none; 'Linear': Rot",
        ),
        (
            [
                rule("re:.*down_proj", stages=[{"rotation": {"seed": 1}}, "rtn"]),
                rule(stages=["rotation", "rtn"]),
            ],
            r"seed=1, .*seed=0, ",
        ),
        ([rule(stages=[{"rotation": {"seed": -1}}, "rtn"])], "rotation: seed: .*greater than or equal to 0"),
        ([rule(stages=[{"rotation": {"r1": True}}, "rtn"])], "no knob 'r1'.*It has: seed, r2"),
    ],
)
def test_what_a_rotation_cannot_be(tmp_path: Path, rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(written(tmp_path, *rules))
