"""The section of RESULTS.md about models of texts, from the committed rows."""

from rows import Row


def text_section(rows: list[Row]) -> list[str]:
    """How fast the texts of all items become vectors."""
    members = sorted((row for row in rows if row["kind"] == "encoding"), key=lambda row: row["protocol"]["parameters"])
    if not members:
        return []
    head = (
        *("recipe", "encoder", "parameters", "items", "tokens", "items a CPU second", "padded, float32", "times as fast"),
        *("cosine to the loop's, least", "products", "machine"),
    )
    lines = [
        "",
        "## Models of texts",
        "",
        "All items' own texts as vectors: packed and sorted by length, beside items as they come, 64 at a time, padded to the",
        "longest of them, in float32 by plain PyTorch with the same weights (as drawn where they are small). In turns; in",
        "brackets the interval over the rounds.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for row in members:
        values, card, hardware = row["values"], row["protocol"], row["provenance"]["hardware"]
        low, high = row["intervals"]["times_as_fast"]
        cells = (
            f"`{row['recipe']}`",
            row["variant"],
            f"{card['parameters']:,}",
            f"{card['items']:,}",
            f"{card['tokens']:,}",
            f"{values['items_per_cpu_second']:,.0f}",
            f"{values['padded_items_per_cpu_second']:,.0f}",
            f"{values['times_as_fast']:.2f}× ({low:.2f}–{high:.2f})",
            f"{values['cosine']:.5f}, {values['least_cosine']:.5f}",
            card["precision"],
            f"{hardware['processor']}, {row['provenance']['threads']} thread",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines
