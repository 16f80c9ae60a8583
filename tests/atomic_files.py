"""A small data set in RecBole's atomic files, with times that float32 cannot tell apart."""

from pathlib import Path

import numpy as np


def write(folder: Path, name: str = "small", users: int = 40, items: int = 30) -> Path:
    """`folder/name/name.inter`; users walk through the items in rings, so that there is something to learn."""
    generator = np.random.default_rng(0)
    lines = []
    for user in range(users):
        place, time = generator.integers(items), 10**9 + 10**6 * user
        for _ in range(generator.integers(6, 18)):
            place, time = (place + generator.integers(1, 3)) % items, time + generator.integers(0, 3)
            lines.append(f"u{user}\ti{place}\t5\t{time}")
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / name).mkdir(parents=True)
    shuffled = [lines[row] for row in generator.permutation(len(lines))]
    (folder / name / f"{name}.inter").write_text("\n".join([head, *shuffled]) + "\n")
    return folder
