"""Recipes refuse what is wrong, all at once and in plain words, and come back from YAML as they went in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from turborec import recipes
from turborec.errors import UserError
from turborec.recipe import Config, Key, MistakesError, Tree, dump, keys, kinds, open_kind, override, parse, read, validate


class BPR(Config):
    kind: Literal["bpr"] = "bpr"
    margin: float = 0.0


class CrossEntropy(Config):
    kind: Literal["cross_entropy"] = "cross_entropy"
    tile: int = Field(1024, ge=1)


class Optimizer(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Stage(Config):
    epochs: int = 3
    optimizer: Optimizer = Optimizer()
    start: str = Field("last", pattern="^(last|best)$")


class Recipe(Config):
    seed: int
    name: str = "a name"
    shuffle: bool = True
    mode: Literal["auto", "eager"] = "auto"
    loss: Annotated[BPR | CrossEntropy, Field(discriminator="kind")] = BPR()
    stages: tuple[Stage, ...] = ()
    clip: float | None = None
    cut: str | Annotated[float, Field(lt=1)] = 0.8
    weights: dict[str, float] = Field({})

    @model_validator(mode="after")
    def _seed_brings_luck(self) -> "Recipe":
        if self.seed == 13:
            raise ValueError("seed 13 brings bad luck; take another.")
        return self


def check(text: str) -> Recipe:
    return validate(Recipe, parse(text, "r.yaml"), "r.yaml")


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        check(text)
    return str(caught.value)


# --- what is good ---


def test_a_recipe_is_read_with_its_defaults() -> None:
    recipe = check("{seed: 7, loss: {kind: cross_entropy, tile: 2}, stages: [{optimizer: {lr: 1e-2}}]}")
    assert recipe == Recipe(
        seed=7, loss=CrossEntropy(tile=2), stages=(Stage(epochs=3, optimizer=Optimizer(lr=0.01, betas=(0.9, 0.999))),)
    )


@pytest.mark.parametrize("number", ["1e-3", "0.001", ".001", "1.0e-03", "+1E-3"])
def test_numbers_may_be_written_in_every_way_of_yaml(number: str) -> None:
    assert check(f"{{seed: 1, clip: {number}}}").clip == 0.001


@pytest.mark.parametrize("text", ["yes", "on", "2020-01-01", "2011-10-01T12:00:00Z", "1:30", "~x", "null_"])
def test_words_that_older_yaml_would_change_stay_text(text: str) -> None:
    assert check(f"{{seed: 1, name: {text}}}").name == text


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    assert check("{seed: 1, clip: 5}").clip == 5.0


def test_anchors_and_a_byte_order_mark_are_allowed() -> None:
    recipe = check("\ufeffseed: 1\nstages: [&first {epochs: 2}, *first]")
    assert [stage.epochs for stage in recipe.stages] == [2, 2]


# --- what is wrong, in exact words ---


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("seed: 1\nsede: 2", "sede: no such key (did you mean 'seed'?)"),
        (
            "seed: 1\nzzz: 2",
            "zzz: no such key (known: clip, cut, loss, mode, name, seed, shuffle, stages, weights)",
        ),
        ("name: x", "seed: needed, but not given"),
        ("seed: yes", "seed: expected a whole number, got 'yes'"),
        ("seed: '1'", "seed: expected a whole number, got '1'"),
        ("seed: 1.5", "seed: expected a whole number, got 1.5"),
        ("seed: true", "seed: expected a whole number, got true"),
        ("seed:", "seed: expected a whole number, got null"),
        ("seed: 1\nshuffle: 1", "shuffle: expected true or false, got 1"),
        ("seed: 1\nshuffle: no", "shuffle: expected true or false, got 'no'"),
        ("seed: 1\nname: 3", "name: expected text, got 3"),
        ("seed: 1\nclip: fast", "clip: expected a number, got 'fast'"),
        ("seed: 1\nclip: .inf", "clip: expected a finite number, got Infinity"),
        ("seed: 1\nclip: .nan", "clip: expected a finite number, got NaN"),
        ("seed: 1\nmode: fast", "mode: expected 'auto' or 'eager', got 'fast'"),
        ("seed: 1\ncut: 1.5", "cut: expected text or a number less than 1, got 1.5"),
        ("seed: 1\ncut: []", "cut: expected text or a number, got []"),
        ("seed: 1\nweights: {a: x}", "weights.a: expected a number, got 'x'"),
        ("seed: 1\nweights: 3", "weights: expected a mapping of keys to values, got 3"),
        ("seed: 1\nloss: {kind: brp}", "loss.kind: nothing is called 'brp' (did you mean 'bpr'?)"),
        ("seed: 1\nloss: {kind: x}", "loss.kind: nothing is called 'x' (known: bpr, cross_entropy)"),
        ("seed: 1\nloss: {margin: 1.0}", "loss.kind: needed, but not given"),
        ("seed: 1\nloss: bpr", "loss: expected a mapping of keys to values, got 'bpr'"),
        ("seed: 1\nloss: {kind: bpr, tile: 3}", "loss.tile: no such key (known: kind, margin)"),
        ("seed: 1\nloss: {kind: cross_entropy, tile: 0}", "loss.tile: expected a number greater than or equal to 1, got 0"),
        ("seed: 1\nstages: 3", "stages: expected a list, got 3"),
        ("seed: 1\nstages: [3]", "stages.0: expected a mapping of keys to values, got 3"),
        ("seed: 1\nstages: [{}, {optimizer: {lrr: 1}}]", "stages.1.optimizer.lrr: no such key (did you mean 'lr'?)"),
        ("seed: 1\nstages: [{optimizer: {betas: [1]}}]", "stages.0.optimizer.betas.1: needed, but not given"),
        (
            "seed: 1\nstages: [{start: first}]",
            "stages.0.start: string should match pattern '^(last|best)$', got 'first'",
        ),
        ("seed: 13", "seed 13 brings bad luck; take another"),
        (
            "seed: " + 100 * "x",
            "seed: expected a whole number, got '" + 58 * "x" + "…",
        ),
    ],
)
def test_one_mistake_is_told_with_its_path_and_remedy(text: str, mistake: str) -> None:
    assert message(text) == f"r.yaml has 1 mistake:\n  {mistake}"


def test_all_mistakes_are_told_at_once() -> None:
    assert message("sede: 1\nloss: {kind: cross_entropy, tile: x, tlie: 2}\nstages: [{epochs: 1.5}]") == (
        "r.yaml has 5 mistakes:\n"
        "  seed: needed, but not given\n"
        "  loss.tile: expected a whole number, got 'x'\n"
        "  loss.tlie: no such key (did you mean 'tile'?)\n"
        "  stages.0.epochs: expected a whole number, got 1.5\n"
        "  sede: no such key (did you mean 'seed'?)"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nname: a\nname: b", 'r.yaml, line 3: duplicate key "name"; keep one of them.'),
        (
            "seed: !!python/object/apply:os.system [ls]",
            "r.yaml, line 1: this is not plain YAML 1.2: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'.",
        ),
        (
            "seed: 1\nname: [",
            "r.yaml, line 2: this is not plain YAML 1.2: while parsing a flow node: expected the node content, but found "
            "'<stream end>'.",
        ),
        (
            "seed: 1\n\tname: a",
            "r.yaml, line 2: this is not plain YAML 1.2: while scanning for the next token: found character '\\t' that "
            "cannot start any token.",
        ),
        ("seed: &a [*a]", "r.yaml holds more than 100,000 values: an alias repeats too much, or itself."),
        (600 * "[", "r.yaml is nested too deeply for a recipe."),
    ],
    ids=["duplicate key", "python object", "unclosed", "tab", "cycle", "deep"],
)
def test_what_is_not_plain_yaml_is_refused(text: str, told: str) -> None:
    assert message(text) == told


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!binary", "!!set", "!!omap", "!mine"])
def test_every_tag_but_those_of_plain_data_is_refused(tag: str) -> None:
    assert "could not determine a constructor" in message(f"seed: {tag} x")


# --- files ---


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "{path} must hold a mapping of keys to values: it is empty."),
        (b"# only a comment", "{path} must hold a mapping of keys to values: it is empty."),
        (b"- 1\n- 2", "{path} must hold a mapping of keys to values: got [1, 2]."),
        (b"name: caf\xe9", "The recipe {path} is not UTF-8 text: unexpected end of data at byte 9."),
    ],
)
def test_a_file_that_holds_no_recipe_is_told_plainly(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == told.format(path=path)


def test_a_file_that_cannot_be_read_is_told_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "none.yaml")
    assert str(caught.value) == f"The recipe {tmp_path / 'none.yaml'} cannot be read: No such file or directory."
    with pytest.raises(UserError, match=r"cannot be read: Is a directory\.$"):
        read(tmp_path)


# --- overrides ---


TREE: Tree = {"seed": 1, "clip": None, "stages": [{"epochs": 1}, {"epochs": 2}], "cut": [1, 2]}


@pytest.mark.parametrize(
    ("assignments", "changed"),
    [
        (["seed=7"], {"seed": 7}),
        (["seed=7", "seed=8"], {"seed": 8}),
        (["lr=1e-3"], {"lr": 0.001}),
        (["name=a=b"], {"name": "a=b"}),
        (["name="], {"name": None}),
        (["name='1'"], {"name": "1"}),
        (["loss={kind: bpr, margin: .5}"], {"loss": {"kind": "bpr", "margin": 0.5}}),
        (["cut=[3, 4, 5]"], {"cut": [3, 4, 5]}),
        (["cut.1=9"], {"cut": [1, 9]}),
        (["stages.1.epochs=5"], {"stages": [{"epochs": 1}, {"epochs": 5}]}),
        (["stages.0.optimizer.lr=1"], {"stages": [{"epochs": 1, "optimizer": {"lr": 1}}, {"epochs": 2}]}),
        (["a.b.c=1", "a.b.d=2"], {"a": {"b": {"c": 1, "d": 2}}}),
        (["clip.x=1"], {"clip": {"x": 1}}),
        ([" seed =3"], {"seed": 3}),
    ],
)
def test_an_override_changes_what_it_names_and_nothing_else(assignments: Sequence[str], changed: Tree) -> None:
    before = json.dumps(TREE)
    assert override(TREE, assignments) == {**TREE, **changed}
    assert json.dumps(TREE) == before


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("seed", "An override reads a.b=value, got 'seed'."),
        ("=3", "An override reads a.b=value, got '=3'."),
        ("a..b=1", "An override reads a.b=value, got 'a..b=1'."),
        ("seed.x=1", "'seed.x=1' goes inside seed, which is 1."),
        ("cut.0.x=1", "'cut.0.x=1' goes inside cut.0, which is 1."),
        ("stages.2.epochs=1", "'stages.2.epochs=1': '2' is not a position in the list (known: 0, 1)."),
        ("stages.-1={}", "'stages.-1={}': '-1' is not a position in the list (known: 0, 1)."),
        ("cut.x=1", "'cut.x=1': 'x' is not a position in the list (known: 0, 1)."),
        ("a=1\na: 2", "The value of a, line 2: this is not plain YAML 1.2: mapping values are not allowed here."),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(assignment: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        override(TREE, [assignment])
    assert str(caught.value) == told


def test_an_overridden_recipe_is_checked_like_any_other() -> None:
    tree = override(parse("seed: 1", "r.yaml"), ["seed=yes", "loss.kind=brp"])
    with pytest.raises(UserError, match=r"^r\.yaml has 2 mistakes"):
        validate(Recipe, tree, "r.yaml")


# --- round trips ---


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    [
        "",
        "yes",
        "null",
        "~",
        "1e3",
        "0o7",
        ".inf",
        "2020-01-01",
        "1:30",
        "- a",
        "a: b",
        "#x",
        "&a",
        "*a",
        "!!int",
        "'",
        "\n",
        " a ",
    ]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
RECIPES = st.builds(
    Recipe,
    seed=st.integers().filter(lambda seed: seed != 13),
    name=TEXTS,
    shuffle=st.booleans(),
    loss=st.builds(BPR, margin=FLOATS) | st.builds(CrossEntropy, tile=st.integers(min_value=1)),
    stages=st.lists(st.builds(Stage, epochs=st.integers()), max_size=2).map(tuple),
    clip=st.none() | FLOATS,
    weights=st.dictionaries(TEXTS, FLOATS, max_size=2),
)


@settings(max_examples=25)
@given(RECIPES)
def test_a_dumped_recipe_is_read_back_the_same(recipe: Recipe) -> None:
    assert validate(Recipe, parse(dump(recipe), "dump"), "dump") == recipe


def test_a_dump_reads_well() -> None:
    assert dump(Recipe(seed=1, loss=CrossEntropy(tile=2), stages=(Stage(),))).splitlines() == [
        "seed: 1",
        "name: a name",
        "shuffle: true",
        "mode: auto",
        "loss:",
        "  kind: cross_entropy",
        "  tile: 2",
        "stages:",
        "- epochs: 3",
        "  optimizer:",
        "    lr: 0.001",
        "    betas:",
        "    - 0.9",
        "    - 0.999",
        "  start: last",
        "clip: null",
        "cut: 0.8",
        "weights: {}",
    ]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check("seed: 1").seed = 2  # type: ignore[misc]


# --- open sets ---


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of two kinds and a private helper."""
    package = tmp_path / "zoo_of_test_recipe"
    package.mkdir()
    for name in ("__init__", "_helper", "lion", "tiger"):
        (package / f"{name}.py").write_text(
            "from turborec import recipe\n\n\nclass Config(recipe.Config):\n    kind: str\n    paws: int = 4\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    return package.name


def test_an_open_set_offers_its_public_files(zoo: str) -> None:
    assert kinds(zoo) == ["lion", "tiger"]
    assert open_kind(zoo, {"kind": "lion"}, "pet", "r.yaml").__module__ == f"{zoo}.lion"


@pytest.mark.parametrize(
    ("tree", "mistake"),
    [
        ({"kind": "tigre"}, "pet.kind: nothing is called 'tigre' (did you mean 'tiger'?)"),
        ({"kind": "_helper"}, "pet.kind: nothing is called '_helper' (known: lion, tiger)"),
        ({"kind": "os"}, "pet.kind: nothing is called 'os' (known: lion, tiger)"),
        ({}, "pet.kind: needed, but not given (known: lion, tiger)"),
        ("lion", "pet: expected a mapping of keys to values, got 'lion'"),
        (None, "pet: needed, but not given"),
    ],
)
def test_an_unknown_kind_is_told_with_what_there_is(zoo: str, tree: Any, mistake: str) -> None:
    with pytest.raises(UserError) as caught:
        open_kind(zoo, tree, "pet", "r.yaml")
    assert str(caught.value) == f"r.yaml has 1 mistake:\n  {mistake}"


@pytest.mark.parametrize(
    "text", ["a: 0x_", "a: !!int x", "a: !!float x", "a: !!bool x", 'a: "\\U00110000"', "a: " + 5000 * "9", "a: ._"]
)
def test_odd_scalars_are_refused_or_text_but_never_a_traceback(text):
    try:
        parse(text, "r.yaml")
    except UserError as error:
        assert "r.yaml" in str(error)


def test_a_bomb_of_aliases_is_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 10)]
    with pytest.raises(UserError, match="more than 100,000 values"):
        parse("\n".join(lines), "r.yaml")


def test_every_key_is_told_with_values_default_and_meaning() -> None:
    told = list(keys(type(recipes.load("online-retail/sasrec"))))
    by_path = {key.path: key for key in told}
    meaning = "events a row shows at most, in training and in evaluation"
    assert by_path["batches.max_length"] == Key("batches.max_length", "a whole number (>= 1)", "50", meaning)
    assert by_path["train.precision"].values == "auto | float32 | bfloat16 | float16"
    assert by_path["stopping.patience_epochs"].default == "10" and by_path["then"].default == "[]"
    schedules = [key.values for key in told if key.path == "train.schedule"]
    assert schedules == ["{kind: constant}", "{kind: linear}", "{kind: cosine}"]
    assert "{kind: sasrec}" in [key.values for key in told if key.path == "model"]


def test_kinds_of_one_class_and_what_lists_hold_are_told() -> None:
    by_path = {key.path: key for key in keys(type(recipes.load("ml-1m/ss4rec")))}
    assert (by_path["model.intervals"].values, by_path["model.intervals"].default) == ("{kind: raw | log | clip | none}", "log")
    assert by_path["model.mixers"].default == '["s5", "mamba"]'


def test_an_entry_that_is_none_of_those_is_one_mistake() -> None:
    with pytest.raises(MistakesError) as caught:
        recipes.load("ml-1m/ss4rec", ["model.mixers=[s6]"])
    assert caught.value.mistakes == ["model.mixers.0: expected 's5' or 'mamba', got 's6'"]


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_the_keys_of_shipped_recipes_are_those_that_they_may_have(name: str) -> None:
    def paths(tree: Tree, above: str = "") -> set[str]:
        found = {f"{above}{key}" for key in tree if key != "kind"}
        return found.union(*(paths(v, f"{above}{k}.") for k, v in tree.items() if isinstance(v, dict)))

    loaded = recipes.load(name)
    told = list(keys(type(loaded)))
    known, mappings = {key.path for key in told}, {key.path for key in told if "mapping" in key.values}
    groups = {".".join(path.split(".")[:depth]) for path in known for depth in (1, 2, 3)}
    named = {path for path in paths(loaded.model_dump(mode="json")) if any(path.startswith(f"{m}.") for m in mappings)}
    assert paths(loaded.model_dump(mode="json")) - named <= known | groups
