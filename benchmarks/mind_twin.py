"""A generated twin of MIND, for who has no copy: python benchmarks/mind_twin.py FOLDER [--seed N] [--users N]...

It has the files, columns and way of writing of MINDsmall (train and dev), at any size. None of it is data of anybody: news,
readers and clicks are drawn from a seed, so a number made with it says how a model does on this distribution and nothing of
news or of people, and whoever shows one must say that it was generated. GENERATED.txt beside the files says so.

What is drawn: a story is of a subcategory of one of the categories, and its words are of both and of everybody. It is
published at some time; most that is shown is less than two days old. A reader likes some subcategories. Of what an impression
shows, met by a popularity that falls off like Zipf's, the reader clicks the likelier what is of his subcategories. So texts
tell what is read, of stories as well that nobody has clicked yet, and numbers of stories tell it only of old ones.

Letters: U users, V news, I impressions, C stories of all impressions.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float64]

CATEGORIES = (
    *("news", "sports", "finance", "foodanddrink", "lifestyle", "travel", "video", "weather", "health", "autos", "tv"),
    *("music", "movies", "entertainment", "kids", "games", "middleeast", "northamerica"),
)
SUBCATEGORIES = 12  # of each category
OWN_WORDS, SHARED_WORDS, EVERYBODYS = 40, 80, 3000  # of a subcategory, of a category, of all
LIKED = 4  # subcategories of a reader, on the mean
KEENNESS = 2.5  # how much likelier, as a logit, what is liked is clicked
ZIPF = 0.8
HOUR = 3600
HISTORY_FROM, TRAIN_FROM, DEV_FROM, END = (
    int(np.datetime64(day, "s").astype(np.int64)) for day in ("2019-10-12", "2019-11-09", "2019-11-15", "2019-11-16")
)
FRESH = 48 * HOUR  # how old a story is at most when it is shown
DEV_SHARE = 73 / 230
AT_ONCE = 2**18  # stories of impressions that are drawn together


@dataclass(frozen=True)
class Settings:
    """What decides every byte that is written."""

    seed: int = 1
    users: int = 50_000
    news: int = 65_000
    impressions: int = 230_000

    def random(self, what: int) -> np.random.Generator:
        """A generator of its own for each thing that is drawn."""
        return np.random.default_rng([self.seed, what])

    def check(self) -> None:
        """Refuse what cannot be drawn."""
        if self.users < 2 or self.news < 200 or self.impressions < 20:
            raise SystemExit("Two users, 200 news and 20 impressions there must be at least.")


@dataclass(frozen=True)
class World:
    """News by time: kind [V], published [V], weight [V]. Users: what they like [U, kinds]."""

    kind: Int
    published: Int
    weight: Float
    likes: NDArray[np.bool_]


def world(settings: Settings) -> World:
    """Draw news and readers."""
    random = settings.random(0)
    kinds = len(CATEGORIES) * SUBCATEGORIES
    old = settings.news // 2
    published = np.concatenate(
        [random.integers(HISTORY_FROM, TRAIN_FROM, old), random.integers(TRAIN_FROM - FRESH // 2, END, settings.news - old)]
    )
    shares = 1.0 / (random.permutation(kinds) + 3) ** ZIPF
    kind = random.choice(kinds, settings.news, p=shares / shares.sum())
    weight = 1.0 / (random.permutation(settings.news) % 997 + 5) ** ZIPF
    likes = random.random((settings.users, kinds)) < LIKED * shares / shares.sum()
    likes[np.arange(settings.users), random.choice(kinds, settings.users, p=shares / shares.sum())] = True
    return World(kind, np.sort(published), weight, likes)


def histories(drawn: World, settings: Settings) -> list[Int]:
    """What each user had clicked before, oldest first, some stories twice; a fiftieth of them nothing: U arrays."""
    random = settings.random(1)
    lengths = np.minimum(random.lognormal(np.log(18), 1.05, settings.users).astype(np.int64) + 1, 425)
    lengths[random.random(settings.users) < 0.02] = 0
    user = np.repeat(np.arange(settings.users), lengths)
    many = int(np.searchsorted(drawn.published, TRAIN_FROM))
    time = HISTORY_FROM + FRESH // 4 + random.integers(0, TRAIN_FROM - HISTORY_FROM - FRESH // 4, len(user))
    chosen = _chosen(drawn, user, np.minimum(time, drawn.published[many - 1]), random)
    order = np.lexsort((time, user))
    found: list[Int] = np.split(chosen[order], np.cumsum(lengths)[:-1])
    return found


def _offered(drawn: World, time: Int, random: np.random.Generator) -> Int:
    """For each time a story that was published by then, hardly more than `FRESH` before, by its weight: [N]."""
    mass = np.concatenate([[0.0], np.cumsum(drawn.weight)])
    first = np.searchsorted(drawn.published, time - FRESH)
    last = np.searchsorted(drawn.published, time, side="right")
    first = np.minimum(first, np.maximum(last - 20, 0))  # there are twenty to choose from at any time but the beginning
    last = np.maximum(last, first + 1)
    draw = mass[first] + random.random(len(time)) * (mass[last] - mass[first])
    return np.clip(np.searchsorted(mass, draw, side="right") - 1, first, last - 1)


def _chosen(drawn: World, user: Int, time: Int, random: np.random.Generator) -> Int:
    """For each user and time one of eight stories that were offered, the likelier what is liked: [N]."""
    found = np.empty(len(user), dtype=np.int64)
    for start in range(0, len(user), AT_ONCE):
        who, when = user[start : start + AT_ONCE], time[start : start + AT_ONCE]
        met = np.stack([_offered(drawn, when, random) for _ in range(8)], axis=1)
        logits = KEENNESS * drawn.likes[who[:, None], drawn.kind[met]] + random.gumbel(size=met.shape)
        found[start : start + AT_ONCE] = met[np.arange(len(who)), logits.argmax(axis=1)]
    return found


def write_behaviors(path: Path, drawn: World, past: Sequence[Int], span: tuple[int, int], number: int, seed: int) -> None:
    """Write impressions between two times, in no order of time, as the file of one part."""
    random = np.random.default_rng(seed)
    users = random.integers(0, len(past), number)
    time = random.integers(*span, number)
    sizes = np.clip(random.lognormal(np.log(24), 1.0, number).astype(np.int64), 2, 283)
    told = [" ".join(f"N{story + 1}" for story in one) for one in past]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, number, AT_ONCE // 32):
            some = slice(start, start + AT_ONCE // 32)
            row = np.repeat(np.arange(len(sizes[some])), sizes[some])
            stories = _offered(drawn, time[some][row], random)
            row, stories = np.divmod(np.unique(row * len(drawn.kind) + stories), len(drawn.kind))
            logits = KEENNESS * drawn.likes[users[some][row], drawn.kind[stories]] + random.gumbel(size=len(row))
            order = np.lexsort((-logits, row))
            place = np.arange(len(row)) - np.searchsorted(row, row)
            clicks = np.minimum(random.geometric(1 / 1.4, len(sizes[some])), np.maximum(np.bincount(row) - 1, 1))
            clicked = np.zeros(len(row), dtype=np.int64)
            clicked[order] = place < clicks[row]
            shuffled = np.lexsort((random.random(len(row)), row))
            texts = [f"N{s + 1}-{c}" for s, c in zip(stories[shuffled], clicked[shuffled], strict=True)]
            bounds = np.searchsorted(row, np.arange(len(sizes[some]) + 1))
            for n, (user, when) in enumerate(zip(users[some], time[some], strict=True)):
                shown = " ".join(texts[bounds[n] : bounds[n + 1]])
                file.write(f"{start + n + 1}\tU{user + 1}\t{_clock(int(when))}\t{told[user]}\t{shown}\n")


def _clock(time: int) -> str:
    """`M/D/YYYY h:mm:ss AM`."""
    when = np.datetime64(time, "s").item()
    return f"{when.month}/{when.day}/{when.year} {when.hour % 12 or 12}:{when:%M:%S} {'AM' if when.hour < 12 else 'PM'}"


def write_news(path: Path, drawn: World, settings: Settings, until: int) -> None:
    """Write what was published by then; a twentieth of it has no abstract."""
    random = settings.random(3)
    words = np.array(
        [_word(number) for number in range(len(CATEGORIES) * (SHARED_WORDS + SUBCATEGORIES * OWN_WORDS) + EVERYBODYS)]
    )
    spread = 1.0 / (np.arange(EVERYBODYS) + 2)
    common = np.cumsum(spread / spread.sum())
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for story, kind in enumerate(drawn.kind.tolist()):
            title, abstract = (_text(kind, length, words, common, random) for length in (11, 34))
            title = f'"{title[:1].upper()}{title[1:]}"' if story % 9 == 0 else title[:1].upper() + title[1:]
            abstract = "" if random.random() < 0.05 else abstract.capitalize() + "."
            if drawn.published[story] < until:
                category, below = CATEGORIES[kind // SUBCATEGORIES], kind % SUBCATEGORIES
                entity = json.dumps(
                    [{"Label": title.split()[0].strip('"'), "Type": "C", "Confidence": 1.0, "OccurrenceOffsets": [0]}]
                )
                row = (
                    f"N{story + 1}",
                    category,
                    f"{category}{below}",
                    title,
                    abstract,
                    f"https://example.org/{story}",
                    entity,
                    "[]",
                )
                file.write("\t".join(row) + "\n")


def _text(kind: int, length: int, words: NDArray[np.str_], common: Float, random: np.random.Generator) -> str:
    """So many words on the mean: two fifths of the subcategory, a fifth of the category, the others everybody's."""
    length = max(4, int(random.normal(length, length / 4)))
    category = kind // SUBCATEGORIES
    own = EVERYBODYS + len(CATEGORIES) * SHARED_WORDS + kind * OWN_WORDS
    shared = EVERYBODYS + category * SHARED_WORDS
    which = random.random(length)
    found = np.searchsorted(common, random.random(length))
    found = np.where(which < 0.6, shared + random.integers(0, SHARED_WORDS, length), found)
    found = np.where(which < 0.4, own + random.integers(0, OWN_WORDS, length), found)
    return " ".join(words[found])


def _word(number: int) -> str:
    """A word that can be spoken, another for each number."""
    text, number = "", number + 40
    while number:
        number, rest = divmod(number, 95)
        text += "bcdfghjklmnprstvwxz"[rest // 5] + "aeiou"[rest % 5]
    return text


def write(folder: Path, settings: Settings) -> None:
    """Write the files of both parts into `folder`."""
    settings.check()
    drawn = world(settings)
    past = histories(drawn, settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "GENERATED.txt").write_text(
        f"benchmarks/mind_twin.py drew this from seed {settings.seed}: {settings.users:,} users, {settings.news:,} news, "
        f"{settings.impressions:,} impressions.\nIt is no data of MIND nor of anybody: say so wherever you show numbers made "
        "with it.\n",
        encoding="utf-8",
    )
    dev = round(settings.impressions * DEV_SHARE)
    for place, (part, begin, end, number) in enumerate(
        [("train", TRAIN_FROM, DEV_FROM, settings.impressions - dev), ("dev", DEV_FROM, END, dev)]
    ):
        inside = folder / f"MINDsmall_{part}"
        inside.mkdir(exist_ok=True)
        write_behaviors(inside / "behaviors.tsv", drawn, past, (begin, end), number, 1000 * settings.seed + place)
        write_news(inside / "news.tsv", drawn, settings, end)


def main() -> None:
    """Write a twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    default = Settings()
    for name in ("seed", "users", "news", "impressions"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    given = parser.parse_args()
    write(given.folder, Settings(given.seed, given.users, given.news, given.impressions))


if __name__ == "__main__":
    main()
