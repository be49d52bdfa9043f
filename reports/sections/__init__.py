"""The sections of the page of one run: each module shapes the data of the template of the same name."""
