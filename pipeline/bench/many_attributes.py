"""A file of attributes with which a workspace has twelve that are labelled, for the benchmarks."""

from pathlib import Path

from shards.attributes import AttributeTable, built_in_attributes, read_own_attributes

TWELVE = 12
CLASSES = ("a", "b", "c", "d")  # of every added attribute


def write_many_attributes(path: Path) -> AttributeTable:
    """Write a file that adds attributes to the built-in ones until twelve are labelled; return all of them."""
    names = [f"extra_{number}" for number in range(TWELVE - len(built_in_attributes().labelled))]
    classes = ", ".join(f"{name} = {{}}" for name in CLASSES)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n".join(
            f'[{name}]\ntitle = "{name}"\nsubject = "balance of {name}"\nplural = "groups of {name}"\n'
            f"headline = true\nclasses = {{ {classes} }}"
            for name in names
        )
    )
    return read_own_attributes(path).table
