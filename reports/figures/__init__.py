"""The report's figures by kind, each saved as an SVG and a PNG; on the page the SVG takes the page's colours."""
