"""`turborec data features`, from files to tables."""

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tiny_encoders import bert_in, onnx_in

FILMS = [
    ("1", "Heat (1995)", "A thief and a detective in Los Angeles.", ["Action", "Crime"]),
    ("2", "Alien (1979)", "<p>A crew meets an <b>alien</b> &amp; runs.</p>", ["Horror"]),
    ("3", None, "<br>", []),
    ("4", "東京物語 😀", None, ["Drama"]),
    ("5", "Long", "word " * 20_000, None),
]


NUMBERS, WORDS = pa.int32(), pa.string()


def films(path: Path, rows=FILMS, item=NUMBERS) -> Path:
    names = ("item_id", "title", "abstract", "genres")
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[0] = [int(raw) for raw in columns[0]] if item is NUMBERS else columns[0]
    pq.write_table(pa.table(dict(zip(names, columns, strict=True)), pa.schema(
        [("item_id", item), ("title", pa.string()), ("abstract", pa.string()), ("genres", pa.list_(pa.string()))]
    )), path)  # fmt: skip
    return path


def jpeg(colour, size=(32, 48), form="JPEG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def posters(path: Path, contents) -> Path:
    pq.write_table(pa.table({"item_id": list(contents), "jpeg": pa.array(list(contents.values()), pa.binary())}), path)
    return path


def table(stem: Path) -> dict[str, np.ndarray]:
    """The rows by raw id, once they are what the card says."""
    rows = np.load(f"{stem}.npy", allow_pickle=False)
    ids = Path(f"{stem}.ids.txt").read_text(encoding="utf-8").splitlines()
    card = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
    assert rows.dtype == np.float32
    assert rows.shape == (len(ids), card["width"]) == (card["rows"], card["width"])
    assert np.isfinite(rows).all()
    return dict(zip(ids, rows, strict=True))


def told(out: str) -> dict[str, int]:
    return json.loads(out.splitlines()[-1])


def test_texts_become_rows_and_items_without_text_have_none(run, tmp_path):
    films(tmp_path / "films.parquet")
    code, out, _ = run(
        "data", "features", "text", "films.parquet", "made/films.npy", "--columns", "title, abstract,genres", "--json"
    )
    assert code == 0
    found = told(out)
    assert (found["rows"], found["width"], found["without_content"], found["broken"]) == (4, 128, 1, 0)
    rows = table(tmp_path / "made" / "films")
    assert list(rows) == ["1", "2", "4", "5"]
    np.testing.assert_allclose([np.linalg.norm(row) for row in rows.values()], 1, rtol=1e-5)
    card = json.loads((tmp_path / "made" / "films.json").read_text(encoding="utf-8"))
    assert card["encoder"]["name"] == "hashed"
    assert card["columns"] == ["title", "abstract", "genres"]
    assert card["source"]["name"] == "films.parquet"
    assert len(card["source"]["sha256"]) == 64
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["films.ids.txt", "films.json", "films.npy"]


def test_every_form_of_table_gives_the_same_rows(run, tmp_path):
    rows = [(raw, title, text) for raw, title, text, _ in FILMS[:4]]
    names = ("item_id", "title", "abstract")
    whole = pa.table({name: pa.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    pq.write_table(whole, tmp_path / "films.parquet")
    pyarrow.feather.write_feather(whole, tmp_path / "films.arrow", compression="uncompressed")
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    for name, delimiter, quote in (("films.csv", ",", '"'), ("films.tsv", "\t", "")):
        lines = [delimiter.join(names)] + [delimiter.join(quote + (cell or "") + quote for cell in row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = None
    for name in ("films.parquet", "films.arrow", "films.jsonl", "films.csv", "films.tsv"):
        code, _, err = run("data", "features", "text", name, "out", "--columns", "title,abstract", "--width", 8)
        assert (code, err) == (0, "")
        found = table(tmp_path / "out")
        expected = expected or found
        assert found.keys() == expected.keys()
        for raw in found:
            np.testing.assert_array_equal(found[raw], expected[raw], err_msg=name)


def test_images_are_encoded_once_and_only_new_ones_again(run, tmp_path):
    contents = {1: jpeg("red"), 2: jpeg("blue"), 3: None, 4: b"", 7: jpeg("white", form="PNG"), 8: jpeg("red")}
    posters(tmp_path / "posters.parquet", contents)
    arguments = ("data", "features", "image", "posters.parquet", "posters", "--column", "jpeg", "--json")
    code, out, _ = run(*arguments)
    assert code == 0
    found = told(out)
    assert (found["rows"], found["encoded"], found["reused"], found["without_content"]) == (4, 3, 1, 2)
    first = table(tmp_path / "posters")
    assert list(first) == ["1", "2", "7", "8"]
    np.testing.assert_array_equal(first["1"], first["8"])
    posters(tmp_path / "posters.parquet", contents | {2: jpeg("green"), 9: jpeg("black")})
    found = told(run(*arguments)[1])
    assert (found["rows"], found["encoded"], found["reused"]) == (5, 2, 3)
    second = table(tmp_path / "posters")
    np.testing.assert_array_equal(second["7"], first["7"])
    assert not np.array_equal(second["2"], first["2"])
    assert not list(tmp_path.glob("**/.*"))
    assert list((tmp_path / "home" / "features").glob("*/*.safetensors"))


def test_a_folder_of_images_is_read_by_name(run, tmp_path):
    (tmp_path / "posters" / "more").mkdir(parents=True)
    (tmp_path / "posters" / "10.jpg").write_bytes(jpeg("red"))
    (tmp_path / "posters" / "more" / "a b.PNG").write_bytes(jpeg("red", form="PNG"))
    (tmp_path / "posters" / "more" / "10.png").write_bytes(jpeg("blue", form="PNG"))
    (tmp_path / "posters" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "posters" / "notes.txt").write_text("no image")
    code, out, err = run("data", "features", "image", "posters", "out")
    assert code == 0
    assert "2 rows of 416 numbers in out.npy: 2 encoded, 0 reused, 0 without content." in out
    assert "1 rows tell an item again" in err
    assert list(table(tmp_path / "out")) == ["10", "a b"]


def test_a_file_whose_name_is_no_text_is_named_and_left_out(run, tmp_path):
    (tmp_path / "posters").mkdir()
    for number in range(30):
        (tmp_path / "posters" / f"{number}.jpg").write_bytes(jpeg((number, 0, 0)))
    (tmp_path / "posters" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg("red"))
    code, _, err = run("data", "features", "image", "posters", "out")
    assert code == 0 and "is not UTF-8" in err
    card = json.loads((tmp_path / "out.json").read_text())
    assert card["rows"] == 30 and list(card["broken"]) == ["caf\\udce9.jpg"]


@pytest.mark.parametrize(("sound", "fine"), [(19, True), (18, False)])
def test_broken_images_are_named_and_few_are_left_out(run, tmp_path, sound, fine):
    contents = {number: jpeg((number, 0, 0)) for number in range(sound)}
    posters(tmp_path / "posters.parquet", contents | {77: jpeg("red", (300, 300))[:400]})
    arguments = ("data", "features", "image", "posters.parquet", "out", "--column", "jpeg")
    code, _, err = run(*arguments)
    assert code == (0 if fine else 2)
    assert "Item 77 is left out: " in err
    assert (tmp_path / "out.npy").exists() == fine
    if not fine:
        assert "1 of 19 items of posters.parquet, columns jpeg are broken, more than 5% (77: " in err
        assert run(*arguments, "--skip-broken")[0] == 0
    assert len(table(tmp_path / "out")) == sound
    assert list(json.loads((tmp_path / "out.json").read_text())["broken"]) == ["77"]


def test_rows_without_a_usable_id_are_broken(run, tmp_path):
    rows = [(str(number), f"film {number}", None, None) for number in range(60)]
    films(tmp_path / "films.parquet", [*rows, (None, "nameless", None, None), ("a\nb", "two lines", None, None)], WORDS)
    code, _, err = run("data", "features", "text", "films.parquet", "out", "--columns", "title")
    assert code == 0
    assert "Item line 61 is left out: it has no item id." in err
    assert "Item line 62 is left out: its item id 'a\\nb' holds a line end." in err
    assert len(table(tmp_path / "out")) == 60


def test_lines_that_cannot_be_read_are_broken(run, tmp_path):
    lines = [json.dumps({"item_id": number, "title": f"film {number}"}) for number in range(60)]
    lines[7] = '{"item_id": 7, "title": "\\ud800"}'
    (tmp_path / "films.jsonl").write_text("\n".join(lines))
    code, _, err = run("data", "features", "text", "films.jsonl", "out", "--columns", "title")
    assert code == 0
    assert "Item line 8 is left out: not JSON." in err


MISTAKES = [
    (("text", "films.parquet", "out", "--columns", "tilte"), "has no column 'tilte' (did you mean 'title'?)"),
    (("text", "films.parquet", "out", "--columns", ","), "--columns names the columns of texts"),
    (("text", "films.parquet", "out", "--columns", "title", "--batch", "3"), "--batch goes with an encoder that is a model"),
    (
        ("text", "films.parquet", "out", "--columns", "title", "--encoder", "minilm", "--width", "3"),
        "goes with the encoder hash",
    ),
    (("text", "notes.txt", "out", "--columns", "title"), "Expected a table, a file ending in .csv"),
    (("text", "empty.parquet", "out", "--columns", "title"), "No item of empty.parquet, columns title has any content"),
    (("image", "films.parquet", "out", "--column", "title"), "column 'title': expected bytes, got string"),
    (("image", "films.parquet", "out", "--column", "jpg"), "has no column 'jpg'"),
    (("image", "nothing", "out"), "There is no image in nothing"),
    (("image", "films.parquet", "out", "--size", "64"), "--size goes with an encoder that is an ONNX file"),
    (("image", "films.parquet", "out", "--encoder", "x.onnx", "--std", "1,0,1"), "--std is three numbers above zero"),
    (("image", "films.parquet", "out", "--encoder", "x.onnx", "--mean", "1"), "--mean is three numbers"),
]


def test_the_source_is_not_written_over(run, tmp_path):
    text = json.dumps({"item_id": 1, "title": "a film"})
    (tmp_path / "films.json").write_text(text)
    code, _, err = run("data", "features", "text", "films.json", "films", "--columns", "title")
    assert code == 2
    assert "films.json, which is read, would be written over" in err
    assert (tmp_path / "films.json").read_text() == text


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_told(run, tmp_path, arguments, message):
    films(tmp_path / "films.parquet")
    films(tmp_path / "empty.parquet", FILMS[2:3])
    (tmp_path / "notes.txt").write_text("a\n")
    (tmp_path / "nothing").mkdir()
    code, _, err = run("data", "features", *arguments)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".*"))


def test_a_kill_leaves_what_was_encoded(run, tmp_path, monkeypatch):
    from turborec.features import compute, descriptor

    posters(tmp_path / "posters.parquet", {number: jpeg((number, 0, 0), form="PNG") for number in range(20)})
    arguments = ("data", "features", "image", "posters.parquet", "out", "--column", "jpeg", "--json")
    describe, left = descriptor.describe, iter(range(10))

    def killed(image):
        if next(left, None) is None:
            raise SystemExit(9)
        return describe(image)

    monkeypatch.setattr(descriptor, "describe", killed)
    monkeypatch.setattr(compute, "AT_A_TIME_BYTES", 4 * len(jpeg("red", form="PNG")) - 20)
    assert run(*arguments)[0] == 9
    assert not list(tmp_path.glob("*out*"))
    monkeypatch.setattr(descriptor, "describe", describe)
    found = told(run(*arguments)[1])
    assert (found["rows"], found["reused"]) == (20, 8)


def test_texts_through_a_transformer_are_cached(run, tmp_path):
    bert_in(tmp_path / "bert", [text for row in FILMS for text in row[1:3] if text])
    films(tmp_path / "films.parquet")
    arguments = ("data", "features", "text", "films.parquet", "out", "--columns", "title,abstract", "--encoder", "bert")
    code, out, err = run(*arguments, "--batch", 2, "--precision", "float32", "--max-length", 1000)
    assert (code, err) == (0, "")
    assert "4 rows of 16 numbers in out.npy: 4 encoded, 0 reused, 1 without content." in out
    first = table(tmp_path / "out")
    card = json.loads((tmp_path / "out.json").read_text())
    assert card["encoder"]["max_length"] == 64
    assert card["versions"].keys() >= {"torch", "transformers", "tokenizers"}
    films(tmp_path / "films.parquet", [*FILMS[::-1], ("6", "Another film", None, None)])
    assert (
        "5 rows of 16 numbers in out.npy: 1 encoded, 4 reused"
        in run(*arguments, "--precision", "float32", "--max-length", 64)[1]
    )
    second = table(tmp_path / "out")
    for raw in first:
        np.testing.assert_array_equal(first[raw], second[raw])


def test_images_through_an_onnx_file_are_cached(run, tmp_path):
    onnx_in(tmp_path / "tiny.onnx", ["n", 3, 8, 8])
    posters(tmp_path / "posters.parquet", {1: jpeg("red", form="PNG"), 2: jpeg("blue", form="PNG"), 3: b"none"})
    arguments = ("data", "features", "image", "posters.parquet", "out", "--column", "jpeg", "--encoder", "tiny.onnx")
    zero = ("--mean", "0,0,0", "--std", "1,1,1", "--skip-broken")
    assert "2 rows of 4 numbers in out.npy: 2 encoded, 0 reused, 0 without content, 1 broken." in run(*arguments, *zero)[1]
    np.testing.assert_allclose(table(tmp_path / "out")["1"], np.array([1, 0, 0, 1]) / 2**0.5, atol=1e-6)
    assert "0 encoded, 2 reused" in run(*arguments, *zero)[1]
    assert "2 encoded, 0 reused" in run(*arguments, "--skip-broken")[1]


@pytest.mark.data
def test_posters_of_movielens(run, tmp_path, data_folder):
    code, out, _ = run(
        "data", "features", "image", data_folder / "ml-1m" / "posters.parquet", "p", "--column", "jpeg", "--json"
    )
    assert code == 0
    found = told(out)
    assert (found["rows"], found["width"], found["broken"], found["without_content"]) == (3256, 416, 0, 0)
    rows = table(tmp_path / "p")
    expected = {
        str(raw) for raw in pq.read_table(data_folder / "ml-1m" / "posters.parquet", columns=["item_id"])[0].to_pylist()
    }
    assert rows.keys() == expected


@pytest.mark.data
def test_abstracts_of_movielens_tell_genres(run, tmp_path, data_folder):
    path = data_folder / "ml-1m" / "items.parquet"
    code, out, _ = run("data", "features", "text", path, "t", "--columns", "dbpedia_abstract", "--json")
    assert code == 0
    found = told(out)
    assert (found["rows"], found["width"], found["without_content"]) == (3301, 128, 582)
    rows = table(tmp_path / "t")
    items = pq.read_table(path, columns=["item_id", "genres"])
    genres = dict(zip(map(str, items["item_id"].to_pylist()), map(set, items["genres"].to_pylist()), strict=True))
    ids, vectors = list(rows), np.stack(list(rows.values()))
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(1)
    shared = np.mean([bool(genres[raw] & genres[ids[other]]) for raw, other in zip(ids, nearest.tolist(), strict=True)])
    by_chance = np.mean([bool(genres[raw] & genres[other]) for raw, other in zip(ids, ids[1:] + ids[:1], strict=True)])
    assert shared > by_chance + 0.2
