"""The attributes on the page: their titles and their order."""

from shards.attributes import built_in_attributes

TITLES = {name: attribute.title for name, attribute in built_in_attributes().items()}
ATTRIBUTES = [  # each with a figure and a table of its own
    name for name, attribute in built_in_attributes().items() if len(attribute.cross) < 3
]
EXPANDED_ATTRIBUTES = [name for name, attribute in built_in_attributes().items() if attribute.unfolded]
