-- What are the attributes and their classes? All of them, with their words, colours and prompts.
from attributes order by attribute_rank(attribute), rank;
