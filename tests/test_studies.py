"""docs/from-the-studies.md: every command that it shows is one, every key is a recipe's, every file is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from turborec import cli, recipes
from turborec.bench import matrix
from turborec.bench.guide import variants
from turborec.bench.levers import lever
from turborec.bench.study import named
from turborec.cli._launching import asked_of, of_train, work_of
from turborec.errors import UserError
from turborec.launch import runpod, script, slurm
from turborec.recbole.job import Job, checked
from turborec.recipe import keys

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "from-the-studies.md"
TEXT = PAGE.read_text(encoding="utf-8")
STUDIES = ("RecFormer study", "BERT4Rec scaling study", "MMGCN/DRAGON study", "RecBole study", "SS4Rec plan")

FENCED = re.compile(r"```bash\n(.*?)```", re.DOTALL)
CODE = [code for line in re.sub(FENCED, "", TEXT).splitlines() for code in re.findall(r"`([^`]+)`", line)]
TORCHRUN = re.compile(r"^torchrun .*? -m (?=turborec )")
COMMANDS = sorted(
    {
        TORCHRUN.sub("", text)
        for text in [*CODE, *(line for block in FENCED.findall(TEXT) for line in block.splitlines())]
        if TORCHRUN.sub("", text).startswith("turborec ")
    }
)
PARTS = tuple(recipes.Recipe.model_fields)
CHANGES = sorted({code for code in CODE if re.match(rf"({'|'.join(PARTS)})(\.\w+)*=", code)})
KEYS = sorted({code for code in CODE if re.fullmatch(rf"({'|'.join(PARTS)})(\.\w+)+", code) and not code.endswith(".json")})
BASES = ("ml-1m/sasrec", "ml-1m/bert4rec", "mind-small/recformer")
"""One of them takes every change that the page shows by itself."""

MACHINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "slurm": (slurm.Job, slurm.PRESETS),
    "script": (script.Machine, {}),
    "runpod": (runpod.Pod, runpod.PRESETS),
}


def words_of(command: str) -> list[str]:
    """What a shell would make of it, up to where the output goes."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    return words[1 : next((place for place, word in enumerate(words) if set(word) <= set("();<>|&")), None)]


def parsed(words: list[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The names of the command, its parameters and the words that it hands on, as the command line reads them."""
    command: Any = typer.main.get_command(cli.app)
    names: list[str] = []
    while hasattr(command, "commands"):
        names.append(words[len(names)])
        command = command.commands[names[-1]]
    context = command.make_context(names[-1], words[len(names) :])
    return names, context.params, list(context.args)


def check(names: list[str], params: dict[str, Any], rest: list[str]) -> None:
    """Recipes, overrides and jobs that a command names are looked at, nothing is carried out."""
    match names:
        case ["launch", "local"]:
            chosen = of_train(rest)
            recipes.load(chosen["name"], chosen["overrides"] or ())
        case ["launch", "phases"]:
            work_of(rest[1:], rest[0])
        case ["launch", machine]:
            kind, presets = MACHINES[machine]
            asked_of(kind, params.get("preset", "none"), presets, params["job"])
            work_of(rest, params["phases"])
        case ["recbole", *_] if params.get("model"):
            checked(Job(model=params["model"], dataset=params["dataset"], settings=tuple(params["settings"] or ())))
        case ["data", "fetch"]:
            pass
        case ["data", ("describe" | "export" | "verify")]:
            recipes.load(params["store"])
        case ["bench"]:
            recipe = recipes.load(params["recipe"], params["overrides"] or ())
            assert all(lever(name) for name in matrix.named(params["levers"], recipe))
            matrix.opponents(params["against"])
        case ["study"]:
            recipe = recipes.load(params["recipe"], params["overrides"] or ())
            variants(named(params["levers"]), params["variant"] or (), recipe, torch.device("cpu"))
        case _:
            if name := params.get("recipe") or params.get("name"):
                recipes.load(name, params.get("overrides") or ())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which every run that the page names is there."""
    for run in re.findall(r"runs/[\w-]+", TEXT):
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command, place):
    check(*parsed(words_of(command)))


@pytest.mark.parametrize("wrong", ["turborec trian a", "turborec train a --debgu", "turborec plan --json"])
def test_a_wrong_command_is_found(wrong, place):
    with pytest.raises(Exception, match=r"trian|debgu|issing"):
        parsed(words_of(wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        "turborec train ml-1m/sasrec train.cmopile=layers",
        "turborec launch local ml-1m/sasrec batches.token=1",
        "turborec bench ml-1m/sasrec --levers bf17",
        "turborec study ml-1m/sasrec --levers batches",
        "turborec launch slurm --preset 4xh10 ml-1m/sasrec --out runs/h",
        "turborec launch runpod ml-1m/sasrec --out runs/h --job image=a --job gpus=1 --debug",
        "turborec launch phases ml-1m-then-ml-2m --out runs/two",
        "turborec recbole train SASRec learning-rate=1",
    ],
)
def test_a_wrong_key_of_a_command_is_found(wrong, place):
    names, params, rest = parsed(words_of(wrong))
    with pytest.raises(UserError):
        check(names, params, rest)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_one_of_a_recipe(change):
    mistakes = []
    for base in BASES:
        try:
            recipes.load(base, shlex.split(change))
        except UserError as error:
            mistakes.append(str(error))
    assert len(mistakes) < len(BASES), mistakes


def test_keys_are_those_of_recipes():
    extra = ["data.source={kind: table, events: a.csv, user: u, item: i}"]
    known = {key.path for base in BASES for key in keys(type(recipes.load(base)))}
    known |= {key.path for key in keys(type(recipes.load(BASES[0], extra)))}
    assert [key for key in KEYS if key not in known and not any(path.startswith(f"{key}.") for path in known)] == []


def test_files_that_it_names_are_there():
    named = {code for code in CODE if re.match(r"(benchmarks|docs|src|tests)/", code)}
    assert named and [name for name in named if not (CHECKOUT / name).exists()] == []


def test_its_links_lead_somewhere():
    links = set(re.findall(r"\]\(([^)]+)\)", TEXT))
    for page, _, place in (link.partition("#") for link in links):
        headings = re.findall(r"^#+ (.*)$", (PAGE.parent / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert not place or place in {heading.lower().replace(" ", "-") for heading in headings}
    assert links


def test_every_row_of_every_study_has_an_answer():
    assert re.findall(r"^## The (.*)$", TEXT, re.MULTILINE) == [*STUDIES]
    for chapter in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        first, second, *rows = re.findall(r"^\|(.*)\|$", chapter, re.MULTILINE)
        assert first.split("|")[1].strip() == "here" and set(second) <= {"-", "|"}
        cells = [[cell.strip() for cell in row.split("|")] for row in rows]
        assert all(len(row) == 3 and row[0] and row[1] for row in cells)
        assert len(cells) > 10
