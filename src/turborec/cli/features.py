"""The commands that make feature tables of items from their texts and images."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home
from turborec.cli._show import console, escape
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.features.compute import Tally

app = typer.Typer(help="Feature tables of items, from their texts and images.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="of OUT.npy, OUT.ids.txt and OUT.json, which are written")]
Item = Annotated[str, typer.Option(help="the column of raw item ids")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="leave broken items out, however many they are")]
Batch = Annotated[int | None, typer.Option(min=1, help="items that are encoded together (64)")]


@app.command("text")
def of_texts(
    table: Annotated[Path, typer.Argument(help="a .parquet, .arrow, .csv, .tsv or .jsonl file", exists=True)],
    out: Out,
    columns: Annotated[str, typer.Option(help="the columns of texts, with commas between them")],
    item: Item = "item_id",
    encoder: Annotated[
        str, typer.Option(help="hashed, minilm, a folder with an encoder, or its name on the Hugging Face hub")
    ] = "hashed",
    width: Annotated[int | None, typer.Option(min=1, max=2048, help="numbers of a vector of hashed (128)")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="tokens; what is longer is cut (256)")] = None,
    batch: Batch = None,
    pooling: Annotated[Literal["mean", "cls"] | None, typer.Option(help="mean: of all tokens; cls: the first (mean)")] = None,
    precision: Annotated[Literal["auto", "float32", "bfloat16"] | None, typer.Option(help="of the products (auto)")] = None,
    device: Device = "auto",
    skip_broken: SkipBroken = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Encode the texts of items; those that were encoded before are taken from the cache."""
    from turborec.engine.log import logging_to
    from turborec.features import compute, encoders, items
    from turborec.features.table import stem_of

    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    if not names:
        raise UserError(f"--columns names the columns of texts, such as title,description; got {columns!r}.")
    task = compute.Task(table, item, names, stem_of(out, table), home, skip_broken)
    found, begun = items.texts(table, item, names), time.monotonic()
    if encoder == "hashed":
        told = {"max-length": max_length, "batch": batch, "pooling": pooling, "precision": precision}
        _unfit(told, "an encoder that is a model, not with hashed")
        with logging_to(None):
            tally = compute.by_table(task, found, width or 128)
    else:
        _unfit({"width": width}, "the encoder hashed; a model has a width of its own")
        from turborec.engine.hardware import compute_dtype, device_of
        from turborec.nn.text import Settings

        settings = Settings(encoder, max_length or 256, batch or 64, pooling or "mean")
        place = device_of(device)
        loaded = encoders.of_text(settings, place, compute_dtype(precision or "auto", place))
        with logging_to(None):
            tally = compute.by_item(task, found, loaded)
    _tell(tally, task.out, time.monotonic() - begun, as_json)


@app.command("image")
def of_images(
    source: Annotated[
        Path, typer.Argument(metavar="TABLE", help="a .parquet or .arrow file, or a folder of ID.jpg", exists=True)
    ],
    out: Out,
    item: Item = "item_id",
    column: Annotated[str, typer.Option(help="the column of the bytes of images")] = "image",
    encoder: Annotated[str, typer.Option(help="descriptor, or an ONNX file")] = "descriptor",
    size: Annotated[int | None, typer.Option(min=8, help="points of a side (as the file says, or 224)")] = None,
    mean: Annotated[str | None, typer.Option(help="of red, green, blue (0.485,0.456,0.406)")] = None,
    std: Annotated[str | None, typer.Option(help="of red, green, blue (0.229,0.224,0.225)")] = None,
    output: Annotated[str | None, typer.Option(help="which output of the ONNX file (its first)")] = None,
    batch: Batch = None,
    device: Device = "auto",
    skip_broken: SkipBroken = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Encode the images of items; those that were encoded before are taken from the cache."""
    from turborec.engine.log import logging_to
    from turborec.features import compute, encoders, items
    from turborec.features.table import stem_of

    begun = time.monotonic()
    if encoder == "descriptor":
        told = {"size": size, "mean": mean, "std": std, "output": output, "batch": batch}
        _unfit(told, "an encoder that is an ONNX file, not with descriptor")
        loaded = encoders.of_descriptor()
    else:
        from turborec.engine.hardware import device_of
        from turborec.nn import images

        average = images.IMAGENET_MEAN if mean is None else _triple("mean", mean)
        spread = images.IMAGENET_STD if std is None else _triple("std", std)
        settings = images.Settings(Path(encoder), size, average, spread, batch or 64, output)
        loaded = encoders.of_onnx(settings, device_of(device))
    task = compute.Task(source, item, () if source.is_dir() else (column,), stem_of(out, source), home, skip_broken)
    with logging_to(None):
        tally = compute.by_item(task, items.images(source, item, column), loaded)
    _tell(tally, task.out, time.monotonic() - begun, as_json)


def _unfit(options: Mapping[str, Any], goes_with: str) -> None:
    """Refuse options that would be without effect."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{', '.join(given)} goes with {goes_with}.")


def _triple(name: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--{name} is three numbers with commas between them, got {text!r}.") from error
    if name == "std" and not min(red, green, blue) > 0:
        raise UserError(f"--std is three numbers above zero, got {text!r}.")
    return red, green, blue


def _tell(tally: "Tally", stem: Path, seconds: float, as_json: bool) -> None:
    from turborec.features.table import card_of, matrix_of

    card = json.loads(card_of(stem).read_text(encoding="utf-8"))
    found = {"table": str(matrix_of(stem)), "rows": card["rows"], "width": card["width"], **card["items"]}
    found |= {"reused": tally.reused, "encoded": tally.encoded, "seconds": round(seconds, 1)}
    if as_json:
        print(json.dumps(found))
        return
    parts = [f"{tally.encoded:,} encoded", f"{tally.reused:,} reused", f"{tally.empty:,} without content"]
    parts += [f"{len(tally.broken):,} broken"] if tally.broken else []
    console.print(f"{card['rows']:,} rows of {card['width']} numbers in {escape(str(matrix_of(stem)))}: {', '.join(parts)}.")
