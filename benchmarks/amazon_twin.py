"""Draw reviews in the layout and size of Amazon's Electronics of 2018 (5-core): python benchmarks/amazon_twin.py FOLDER.

FOLDER/2018/Electronics_5.json.gz has a JSON object a line, as the collectors' file has: reviewer, product, rating, time, and a
text that preparation reads over. Users have five reviews at least, products about as many as a power law gives them.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

USERS, ITEMS, REVIEWS = 728_719, 160_052, 6_739_590
"""Of the collectors' page; a study that left out users with two reviews had 728,678 of them."""

FIRST, LAST = 946_684_800, 1_538_524_800
"""2000-01-01 and 2018-10-03, in seconds: reviews are of whole days."""

TEXT = (
    "works great with my camera and the battery lasts all day but the cable is short so I bought another one for the car "
    "sound is clear picture is sharp setup took five minutes would buy again returned the first because it was broken"
)
BLOCK = 100_000


def draw(users: int, items: int, reviews: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and day of each review, by time: int64 [E] each."""
    generator = np.random.default_rng(seed)
    spare = reviews - 5 * users
    if spare < 0:
        raise SystemExit(f"{users:,} users of five reviews at least have {5 * users:,} in all, not {reviews:,}.")
    shares = generator.pareto(1.6, users) + 0.05
    counts = 5 + np.floor(spare * shares / shares.sum()).astype(np.int64)
    counts[: reviews - int(counts.sum())] += 1
    owner = np.repeat(np.arange(users), counts)
    popularity = 1.0 / (np.arange(items) + 20.0) ** 0.9
    edges = np.cumsum(popularity)
    item = np.searchsorted(edges, generator.random(reviews) * edges[-1]).clip(0, items - 1)
    day = FIRST + 86_400 * (((LAST - FIRST) // 86_400) * np.sqrt(generator.random(reviews))).astype(np.int64)
    order = np.argsort(day, kind="stable")
    return owner[order], generator.permutation(items)[item[order]], day[order]


def write(folder: Path, users: int, items: int, reviews: int, seed: int) -> Path:
    """The file, written whole."""
    path = folder / "2018" / "Electronics_5.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner, item, day = draw(users, items, reviews, seed)
    words = 2 * TEXT.split()
    generator = np.random.default_rng(seed + 1)
    with gzip.open(path.with_suffix(".part"), "wt", compresslevel=1, encoding="utf-8", newline="\n") as file:
        for begin in range(0, reviews, BLOCK):
            rows = slice(begin, begin + BLOCK)
            stars = generator.integers(1, 6, len(owner[rows]))
            starts = generator.integers(0, len(words) // 2, (len(owner[rows]), 2))
            for user, product, when, rating, (first, length) in zip(
                owner[rows].tolist(), item[rows].tolist(), day[rows].tolist(), stars.tolist(), starts.tolist(), strict=True
            ):
                text = " ".join(words[first : first + 8 + length])
                file.write(
                    f'{{"overall": {rating}.0, "verified": true, "reviewerID": "A{user:013d}", "asin": "B{product:09d}", '
                    f'"reviewText": {json.dumps(text)}, "summary": "as described", "unixReviewTime": {when}}}\n'
                )
    path.with_suffix(".part").replace(path)
    return path


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--reviews", type=int, default=REVIEWS)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(write(chosen.folder, chosen.users, chosen.items, chosen.reviews, chosen.seed))


if __name__ == "__main__":
    main()
