"""The attributes on the page: their titles and their order."""

TITLES = {
    "gender": "Gender",
    "skin_group": "Skin group",
    "age": "Age",
    "skin_tone": "Skin tone (Monk)",
    "intersection": "Gender and skin group",
    "intersection_age": "Gender, skin group and age",
}
ATTRIBUTES = [name for name in TITLES if name != "intersection_age"]  # each with a figure and a table of its own
EXPANDED_ATTRIBUTES = ("gender", "skin_group")  # that the page shows unfolded
