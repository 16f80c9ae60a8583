"""The anchors on real data against values measured independently, whose ties were optimistic where ours are at mid-rank."""

import pytest

from turborec import recipes, run, stores
from turborec.stores import Places

pytestmark = pytest.mark.data

# HR@10 and NDCG@10 of popularity (kept) and of the Markov mixture counted on training transitions (kept, masked).
EXPECTED = {
    "amazon-beauty-2014": {"popularity": (0.0120, 0.0055), "kept": (0.0697, 0.0436), "masked": (0.0735, 0.0467)},
    "amazon-sports-2014": {"popularity": (0.0090, 0.0051), "kept": (0.0375, 0.0225), "masked": (0.0387, 0.0235)},
}
COUNTS = {
    "amazon-beauty-2014": (22_363, 12_101, 198_502),
    "amazon-sports-2014": (35_598, 18_357, 296_337),
    "ml-1m": (6_040, 3_416, 999_611),
}


def recipe_of(data_folder, name):
    source = {"kind": "table", "events": str(data_folder / name / "interactions.parquet")}
    columns = {"user": "user_id", "item": "item_id", "order": "position"}
    return recipes.from_tree({"data": {"source": source | columns}, "model": {"kind": "markov"}}, "the test")


@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_are_the_published_ones(data_folder, tmp_path, name):
    store = stores.of_recipe(recipe_of(data_folder, name), Places(home=tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == COUNTS[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_popularity_and_markov_agree_within_two_thousandths(data_folder, tmp_path, name):
    _, results = run.train(recipe_of(data_folder, name), tmp_path / "run", Places(home=tmp_path))
    markov, popularity, expected = results["markov"], results["popularity"], EXPECTED[name]
    for got, wanted in ((popularity.kept, "popularity"), (markov.kept, "kept"), (markov.masked, "masked")):
        assert (got["hr@10"], got["ndcg@10"]) == pytest.approx(expected[wanted], abs=0.002)
