import numpy as np
import pytest

from turborec.features import hashed
from turborec.features.hashed import BINS, FOLDED, Corpus, terms

TOPICS = {
    "sea": ["whale", "ship", "sailor", "harbour", "storm", "captain", "anchor", "wave"],
    "city": ["subway", "traffic", "skyline", "office", "elevator", "taxi", "neon", "crowd"],
    "farm": ["wheat", "barn", "tractor", "harvest", "orchard", "cattle", "meadow", "plough"],
}


def texts_of(topic: str, number: int, generator: np.random.Generator) -> list[str]:
    return [" ".join(generator.choice(TOPICS[topic], 5, replace=False)) + " the a of" for _ in range(number)]


def vectors_of(folder, texts, width=16, at_a_time=7):
    folder.mkdir(parents=True)
    corpus = Corpus(folder)
    for start in range(0, len(texts), at_a_time):
        corpus.add(texts[start : start + at_a_time])
    return np.concatenate(list(corpus.vectors(width)))


def test_texts_of_one_topic_are_nearer_than_texts_of_two(tmp_path):
    generator = np.random.default_rng(0)
    texts = [text for topic in TOPICS for text in texts_of(topic, 12, generator)]
    vectors = vectors_of(tmp_path / "words", texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (36, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness = vectors @ vectors.T
    same = np.kron(np.eye(3, dtype=bool), np.ones((12, 12), bool))
    assert likeness[same].mean() > likeness[~same].mean() + 0.3


def test_vectors_are_those_of_an_exact_decomposition_of_the_weighted_table(tmp_path):
    """Against numpy's SVD of a table made here from the bins and counts."""
    texts = ["red red wine", "white wine", "a red house", "the white house", "wine in the house"]
    table, known_in = np.zeros((5, BINS)), np.zeros(BINS)
    for text in texts:
        known_in[terms(text)[0]] += 1
    for row, text in zip(table, texts, strict=True):
        bins, counts = terms(text)
        row[bins] = (1 + np.log(counts)) * (1 + np.log(6 / (1 + known_in[bins])))
        row[: BINS // 2] /= np.linalg.norm(row[: BINS // 2])
        row[BINS // 2 :] /= np.linalg.norm(row[BINS // 2 :])
    column, sign = hashed._folding()
    folded = np.stack([np.bincount(column, row * sign, FOLDED) for row in table])
    left, values, _ = np.linalg.svd(folded, full_matrices=False)
    expected = (left * values)[:, :3]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = vectors_of(tmp_path / "words", texts, width=3, at_a_time=2)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-6)


def test_few_and_many_texts_are_condensed_alike(tmp_path, monkeypatch):
    texts = [text for topic in TOPICS for text in texts_of(topic, 12, np.random.default_rng(2))]
    monkeypatch.setattr(hashed, "FOLDED", 64)
    few = vectors_of(tmp_path / "few", texts, width=6)
    monkeypatch.setattr(hashed.Corpus, "few", lambda corpus: False)
    np.testing.assert_allclose(vectors_of(tmp_path / "many", texts, width=6), few, atol=1e-6)


def test_vectors_do_not_depend_on_how_many_texts_come_at_once(tmp_path):
    texts = texts_of("sea", 20, np.random.default_rng(1))
    one, other = (vectors_of(tmp_path / str(size), texts, at_a_time=size) for size in (1, 20))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_hashes_and_signs_are_the_same_on_every_machine():
    bins, counts = terms("Red red WINE")
    assert bins.tolist() == sorted(bins.tolist())
    assert counts.sum() == 3 + 2 + 2 * (3 + 2 + 1) + (4 + 3 + 2)  # words, pairs, parts
    column, sign = hashed._folding()
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]  # SplitMix64 from 0, as published
    assert column[:4].tolist() == [number % FOLDED for number in first]
    assert sign[:4].tolist() == [-1 if number >> 63 else 1 for number in first]


def test_columns_are_filled_evenly_and_hold_both_signs_alike():
    column, sign = hashed._folding()
    bins, sums = np.bincount(column, minlength=FOLDED), np.bincount(column, sign, FOLDED)
    each = BINS / FOLDED  # 128, which is also the variance of both
    assert abs(bins - each).max() < 6 * each**0.5
    assert abs(sums).max() < 6 * each**0.5
    assert 0.8 < sums.var() / each < 1.2


def test_few_texts_leave_columns_empty_and_odd_ones_still_have_rows(tmp_path):
    vectors = vectors_of(tmp_path / "words", ["!!!", "😀", "\U0001f600 東京", "x" * 100_000, "a"], width=128)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert not vectors[:, 5:].any()


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_text_without_characters_has_no_terms(text):
    assert len(terms(text)[0]) == 0
